"""What conf/ computes from its own values: `${name:…}` in its files.

Each takes what was composed, whatever that is: a wrong value is refused by its stage's schema, with its name, and not here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, ListConfig, OmegaConf

from stages.pipeline.composed_config import FINGERPRINTS
from stages.pipeline.config import MANDATORY
from stages.pipeline.provenance import SECTION, conf_digest, values_digest
from stages.pipeline.variants import DATASET, Kind, Trainings, Variant, export_cell, kept_steps, variant_cell, variants_of

ROOT = Path(__file__).parents[2]
ORIGINALS = ("theta0", "theta1", "theta2")


def register() -> None:
    """Make the resolvers known to OmegaConf, and take away the one that would write secrets into params.yaml."""
    resolvers = {
        "conf_digest": digest_of_conf,
        "described": described,
        "embedded": embedded,
        "exports": exports,
        "kept": kept,
        "listed": listed,
        "local": local,
        "hub_ids": hub_ids,
        "merge_name": merge_name,
        "model_name": model_name,
        "oc.env": refuse_environment,
        "originals": originals,
        "placeholder": placeholder,
        "values_digest": digest_of_values,
        "variants": variants,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def digest_of_conf(*, _root_: DictConfig) -> str:
    """The digest of the files of conf/ that the experiment can be composed of."""
    return conf_digest(ROOT / "conf", str(_root_.get("name")))


def digest_of_values(*, _root_: DictConfig) -> str:
    """The digest of all that is composed but the digests themselves."""
    unresolved: Any = OmegaConf.to_container(_root_, resolve=False)
    del unresolved[SECTION]
    values: Any = OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True)
    return values_digest(values)


def local(stage: str, node: Any, *settings: str) -> str:
    """The first of these settings that holds a local path.

    If none does, it is the fingerprint of the stage, which it depends on anyway: DVC cannot leave a dependency out.
    """
    found = [OmegaConf.select(node, setting) for setting in settings] if isinstance(node, DictConfig) else []
    return next((str(path) for path in found if path is not None and path != "???"), f"{FINGERPRINTS}/{stage}")


def originals(base: Any) -> DictConfig:
    """What each original is read from, as DVC watches it."""
    nodes = {name: base.get(name) if isinstance(base, DictConfig) else None for name in ORIGINALS}
    read = {name: {part: local("base", node, f"{part}.path") for part in ("config", "source")} for name, node in nodes.items()}
    return OmegaConf.create({name: {**paths, "neighbour": neighbour(paths["source"])} for name, paths in read.items()})


def neighbour(source: str) -> str:
    """The .yaml beside a single file, which says what the model predicts."""
    beside = Path(source).with_suffix(".yaml")
    return str(beside) if (ROOT / source).is_file() and (ROOT / beside).is_file() else f"{FINGERPRINTS}/base"


def listed(value: Any) -> ListConfig:
    """The values of a sweep, as DVC's matrix takes them: nothing where they are no list, which `sync` then refuses."""
    plain: Any = OmegaConf.to_container(value) if isinstance(value, ListConfig) else []
    return OmegaConf.create([each for each in plain if isinstance(each, str | int | float)])


def variants(sweep: Any) -> DictConfig:
    """Each variant that is drawn, with what it is drawn by, as dvc.yaml takes it."""
    return OmegaConf.create({each.name: variant_cell(each) for each in _swept(sweep)})


def embedded(sweep: Any) -> DictConfig:
    """Each folder of images that is embedded, by the name of its embeddings: those of the dataset, and of each variant."""
    drawn = {each.name: f"data/images/{each.name}" for each in _swept(sweep)}
    return OmegaConf.create({DATASET: "data/raw", **drawn})


def exports(sweep: Any) -> DictConfig:
    """Each merge and each LoRA, as dvc.yaml takes it for export."""
    return OmegaConf.create(dict(export_cell(each) for each in _swept(sweep) if each.alpha is not None))


def _swept(sweep: Any) -> list[Variant]:
    """The variants of a sweep, so far as its values are such as may stand in names: the shell sees these."""
    names = ("rank", "dreambooth_rank", "vectors", "seed", "alpha", "lora_scale", "bases")
    values = {name: list(listed(sweep.get(name))) if isinstance(sweep, DictConfig) else [] for name in names}
    alphas, scales = ([value for value in values[name] if isinstance(value, int | float)] for name in names[4:6])
    ranks, dreambooth_ranks, vectors, seeds = (
        [value for value in values[name] if isinstance(value, int)] for name in names[:4]
    )
    bases: list[Kind] = [name for name in ("theta0", "theta1") if name in values["bases"]]
    trainings: dict[Kind, Trainings] = {
        "text2img": Trainings(ranks, seeds, _kept(sweep, "text2img")),
        "dreambooth": Trainings(dreambooth_ranks, seeds, _kept(sweep, "dreambooth")),
        "textual_inversion": Trainings(vectors, seeds, _kept(sweep, "textual_inversion")),
    }
    return variants_of(bases, alphas, trainings, scales)


def _kept(sweep: Any, kind: str) -> list[int]:
    found = OmegaConf.select(sweep, f"kept_steps.{kind}") if isinstance(sweep, DictConfig) else None
    return [step for step in listed(found) if isinstance(step, int)]


def kept(training: Any) -> ListConfig:
    """The steps after which a training keeps its LoRA, beside its end."""
    of_training = [
        training.get(name) if isinstance(training, DictConfig) else None for name in ("keep_every", "max_train_steps")
    ]
    keep_every, steps = (value if isinstance(value, int) and value > 0 else None for value in of_training)
    return OmegaConf.create(kept_steps(keep_every, steps or 0))


def described(training: Any) -> str:
    """What a word is described by, as DVC watches it: captions, or else the stage's fingerprint, on which it depends anyway."""
    by_captions = isinstance(training, DictConfig) and training.get("templates") == "captions"
    return "data/dataset" if by_captions else f"{FINGERPRINTS}/train_textual_inversion"


def placeholder(trigger: Any) -> str | None:
    """The token that stands for a trigger: one word in angle brackets."""
    return f"<{'-'.join(trigger.split())}>" if isinstance(trigger, str) and trigger.split() and trigger != MANDATORY else None


def model_name(base: Any, original: str) -> str:
    """What an original is called: its file or folder, or the repository that it comes from."""
    source = OmegaConf.select(base, f"{original}.source") if isinstance(base, DictConfig) else None
    if not isinstance(source, Mapping):
        return original
    path = next((source.get(part) for part in ("path", "file", "repo") if source.get(part)), original)
    path = Path(str(path))
    return path.stem if path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin") else path.name


def hub_ids(base: Any) -> ListConfig:
    """The repositories of the hub that the originals come from, each once."""
    originals = ("theta0", "theta1", "theta2") if isinstance(base, DictConfig) else ()
    repos = [OmegaConf.select(base, f"{original}.source.repo") for original in originals]
    return OmegaConf.create([*dict.fromkeys(repo for repo in repos if repo and repo != MANDATORY)])


def merge_name(base: Any) -> str:
    """What the model is called that is trained on: a merge, or theta0 alone."""
    merged = isinstance(base, DictConfig) and base.get("theta1") is not None
    return "merge" if merged else model_name(base, "theta0")


def refuse_environment(name: str, *_default: str) -> NoReturn:
    """In place of OmegaConf's own `oc.env`: what it reads would be written into params.yaml, and committed.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"${{oc.env:{name}}}: conf/ may not read the environment: params.yaml would hold what it reads")
