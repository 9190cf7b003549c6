"""Typed parameters: the building blocks of every stage's config, and their loading from params.yaml.

Configs are frozen pydantic dataclasses without defaults (conf/ is the only home of values); a wrong value is refused with
its path, what was given and what is allowed.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import to_json

PARAMS_FILE = Path("params.yaml")
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast one where PyYAML was built with it."""

strict = ConfigDict(extra="forbid", allow_inf_nan=False)

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""


def _as_written(value: Any, validate_float: ValidatorFunctionWrapHandler) -> Any:
    checked = validate_float(value)
    return value if isinstance(value, int) else checked


Alpha = Annotated[float, Field(ge=0, le=1), WrapValidator(_as_written)]
"""A merge weight in [0, 1]; a whole number stays one, because stages and folders are named as it is written."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Table = Annotated[dict[K, V], BeforeValidator(lambda value: {} if value is None else value)]
"""Values by names; null for none, in whose place Hydra takes `setting={name: value}`, which it does not add to {}."""
Resolution = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]
"""Pixels of one side; a multiple of 8, the reduction of Stable Diffusion's VAE."""
ClipSkip = Annotated[int, Field(ge=0, le=31)]
"""Layers of the text encoder left out at its end; 0 uses all (A1111 calls that 1)."""


def refuse_twice(**lists: Collection[Any]) -> None:
    """Refuse lists, by the names of their settings, in which a value stands twice.

    Raises:
        ValueError: it names the setting.
    """
    for name, values in lists.items():
        if len(set(values)) != len(values):
            raise ValueError(f"{name}: {list(values)} holds a value twice")


Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Repo = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
"""A hub id, owner/name."""

MANDATORY = "???"
"""What Hydra writes where a value has to be set."""
COMMIT = re.compile(r"[0-9a-f]{40}")


class ParamsError(ValueError):
    """params.yaml does not hold what a stage's config allows; the message is one line a setting."""


@dataclass(frozen=True, config=strict)
class Source:
    """Where a checkpoint, a model or a configuration comes from: a local path, or a pinned file or folder of the hub.

    Attributes:
        path: a local file or directory; null for the hub.
        repo: hub id, "owner/name"; null for a local path.
        revision: the commit, 40 hex digits. A branch name would change under the experiment's feet; it is allowed only
            where the sha256 of the file pins the content.
        file: one file of the repo, a folder of it, or null for all of it.
        sha256: expected digest of that one file; null where it is not known.
    """

    path: Path | None
    repo: Repo | None
    revision: str | None
    file: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None

    def __post_init__(self) -> None:
        """Check that exactly one kind of source is given, and that it can be found again."""
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path (a local file or directory) or repo (a hub id), not both and not neither")
        if self.path is not None and not self.path.exists():
            raise ValueError(f"path: no such file or directory: {self.path}")
        if self.repo is not None and not COMMIT.fullmatch(self.revision or "") and not (self.file and self.sha256):
            raise ValueError(f"revision: {self.revision!r} is not a commit of 40 hex digits; pin the one you mean")


def _no_single_file(value: str | None) -> str | None:
    if value is not None:
        raise ValueError("this model is a whole directory or repository (weights, tokenizer, image settings); set it to null")
    return value


Unused = Annotated[str | None, AfterValidator(_no_single_file)]


@dataclass(frozen=True, config=strict)
class ModelSource(Source):
    """Where a model of the transformers library comes from: a directory, or the whole of a repository at one commit.

    Attributes:
        file: null; it is here because all sources have the same settings.
        sha256: null, likewise.
    """

    file: Unused
    sha256: Unused


@dataclass(frozen=True, config=strict)
class RuntimeConfig:
    """Where and how a stage computes. The bytes of a result depend on all of it.

    Attributes:
        device: "cuda" (NVIDIA's and, with ROCm, AMD's GPUs), "mps" (Apple's) and "xpu" (Intel's) refuse to run without one;
            "auto" takes a CUDA device where there is one, and else the CPU.
        threads: CPU threads of torch's operators.
        dtype: of frozen weights and activations; trained weights are always float32.
        deterministic: only operations that give the same bytes each time; one that has no such form ends the stage.
        tf32: have a CUDA device round the factors of float32 products to 10 bits (TF32): faster, and less exact.
        cuda_graphs: on a CUDA device, record a training step and a step of drawing once for each shape and launch it whole.
    """

    device: Literal["auto", "cpu", "cuda", "mps", "xpu"]
    threads: Annotated[int, Field(ge=1, le=256)]
    dtype: Literal["float32", "float16", "bfloat16"]
    deterministic: bool
    tf32: bool
    cuda_graphs: bool


@dataclass(frozen=True, config=strict)
class HousekeepingConfig:
    """How work is saved and shown while it goes on. None of it can change a result, so a change reruns nothing.

    Attributes:
        checkpointing_steps: optimizer steps between two checkpoints of an unfinished training.
        logging_steps: optimizer steps between two looks at the loss of a training: it is shown, and refused if it is no number.
    """

    checkpointing_steps: Count
    logging_steps: Count


@dataclass(frozen=True, config=strict)
class SweepConfig:
    """The values that the matrix stages follow.

    Attributes:
        alpha: merge weights of theta1, in [0, 1]; 0 is theta0 alone, 1 is theta1 alone.
        rank: LoRA ranks of the text-to-image LoRA.
        dreambooth_rank: LoRA ranks of the DreamBooth LoRA; an empty list leaves DreamBooth out.
        vectors: of the words of textual inversion; an empty list leaves it out.
        seed: of the trainings: the adapters' first weights, the order of the images, noise, timesteps and augmentation. What is
            to be said of a method, and not of one file, takes several.
        lora_scale: factors on what the LoRAs add to their merge, in the images; 0 is the merge without them.
        kept_steps: by kind of LoRA, the optimizer steps after which one was kept that draws, too.
        bases: which originals get images of their own: theta0, theta1, both or none.
    """

    alpha: Annotated[tuple[Alpha, ...], Field(min_length=1)]
    rank: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)]
    dreambooth_rank: tuple[Annotated[int, Field(ge=1, le=1024)], ...]
    vectors: tuple[Annotated[int, Field(ge=1, le=75)], ...]
    seed: Annotated[tuple[Seed, ...], Field(min_length=1)]
    lora_scale: Annotated[tuple[Annotated[float, Field(ge=-10, le=10)], ...], Field(min_length=1)]
    kept_steps: dict[Literal["text2img", "dreambooth", "textual_inversion"], tuple[Count, ...]]
    bases: tuple[Literal["theta0", "theta1"], ...]

    def __post_init__(self) -> None:
        """Refuse a value that stands twice: its stages would have the same name."""
        ranks = {"rank": self.rank, "dreambooth_rank": self.dreambooth_rank, "vectors": self.vectors}
        steps = {f"kept_steps.{kind}": of_kind for kind, of_kind in self.kept_steps.items()}
        refuse_twice(alpha=self.alpha, **ranks, seed=self.seed, lora_scale=self.lora_scale, bases=self.bases, **steps)


@dataclass(frozen=True, config=strict)
class ExperimentConfig:
    """What stands above all sections.

    Attributes:
        name: of the preset, as its file in conf/experiment is called.
        trigger: what the LoRAs shall learn to show when it is named; null for none.
        subjects: of several subjects, what each is called, by the name of its image set.
        resolution: pixels of one side, of the training images and of the generated ones, where their stages say no other.
        clip_skip: layers of the text encoder left out at its end, where stages say no other.
        prompt_syntax: of the prompts that are drawn, where stages say no other.
    """

    name: Text
    trigger: Text | None
    subjects: Table[Text, Text]
    resolution: Resolution
    clip_skip: ClipSkip
    prompt_syntax: Literal["plain", "a1111"]


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Read params.yaml; `ParamsError` if it is missing or not a mapping."""
    try:
        params = yaml.load(path.read_text(), Loader=YAML_LOADER)
    except FileNotFoundError as error:
        raise ParamsError(f"{path} is missing: run `python -m stages.pipeline.compose`") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(params, dict):
        raise ParamsError(f"{path} holds no sections: run `python -m stages.pipeline.compose`")
    return params


def validate(section: str, schema: type[T], values: object) -> T:
    """Check one section of the parameters against its schema: types as JSON tells them apart, so that `true` is no number.

    Raises:
        ParamsError: one line for each wrong setting: its path, what was given, what is allowed.
    """
    unset = [".".join(filter(None, (section, setting))) for setting in _unset(values)]
    if unset:
        raise ParamsError(
            "\n".join(f"{setting}: is mandatory and not set yet; see the comment beside it in conf/" for setting in unset)
        )
    try:
        return TypeAdapter(schema).validate_json(to_json(values, inf_nan_mode="constants", fallback=str), strict=True)
    except ValidationError as error:
        items = [item for item in error.errors() if not _is_consequence(item, error)]
        raise ParamsError("\n".join(_explain(section, item, values) for item in items)) from error


def _unset(values: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The settings that hold Hydra's mark of a mandatory value."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if value == MANDATORY:
            yield ".".join((*path, str(key)))
        else:
            yield from _unset(value, (*path, str(key)))


def load_params(section: str, schema: type[T], path: Path = PARAMS_FILE) -> T:
    """Load and check one section of params.yaml."""
    params = read_params(path)
    if section not in params:
        raise ParamsError(f"{section}: this section is missing in {path}: run `python -m stages.pipeline.compose`")
    return validate(section, schema, params[section])


def _is_consequence(item: Mapping[str, Any], error: ValidationError) -> bool:
    """Whether a list is called too short only because its wrong items were left out."""
    return item["type"] == "too_short" and any(
        len(other["loc"]) > len(item["loc"]) and other["loc"][: len(item["loc"])] == item["loc"] for other in error.errors()
    )


def _setting(location: tuple[int | str, ...], values: Any) -> list[str]:
    """The path of an error as it stands in the values; pydantic adds the kinds of unions to it."""
    path = []
    for number, part in enumerate(location):
        if isinstance(part, int):
            path.append(str(part))
            values = values[part] if isinstance(values, list) else None
        elif isinstance(values, Mapping) and (part in values or number == len(location) - 1):
            path.append(part)
            values = values.get(part)
    return path


def _left_behind(given: Any) -> str:
    """The cure where a path is missing in a queued experiment's own folder alone: DVC takes along what git tracks."""
    path = given.get("path") if isinstance(given, dict) else given
    root = Path(os.environ.get("DVC_ROOT", "."))  # the repository, wherever the experiment runs
    if not isinstance(path, str) or not path or Path(path).exists() or not (root / path).exists():
        return ""
    return f"; it lies untracked in the repository: bring it along, dvc exp run -C {Path(path).parts[0]} …"


def _explain(section: str, item: Mapping[str, Any], values: Any) -> str:
    """Write one pydantic error as `setting: given …: what is allowed`."""
    setting = ".".join([*filter(None, [section]), *_setting(item["loc"], values)])
    message = str(item["msg"]).removeprefix("Value error, ")
    message += _left_behind(item["input"])
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return f"{setting}: {message}" if ": " not in message else f"{setting}.{message}"
    if item["type"] == "unexpected_keyword_argument":
        return f"{setting}: no such parameter"
    if item["type"] in ("missing", "missing_argument"):
        return f"{setting}: is missing"
    if item["type"] in ("tuple_type", "list_type"):
        return f"{setting}: given {item['input']!r}: a list is needed, [{item['input']}]"
    return f"{setting}: given {item['input']!r}: {message}"
