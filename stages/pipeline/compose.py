"""Compose conf/ into params.yaml, as `dvc exp run` does it.

python -m stages.pipeline.compose                          # the experiment that conf/config.yaml names
python -m stages.pipeline.compose experiment=asuka         # another preset, which conf/config.yaml then names
python -m stages.pipeline.compose train_text2img.learning_rate=5e-4 'sweep.alpha=[0.5,0.7]'
"""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.pipeline.config import PARAMS_FILE
from stages.pipeline.outputs import atomic_file

CONF = Path("conf")
_CHOICE = re.compile(r"^(\s*- experiment: *)(\S+)", flags=re.MULTILINE)


def compose(out: Path, overrides: Sequence[str] = (), conf: Path = CONF) -> None:
    """Write the composed parameters to `out`, as `dvc exp run` does; `overrides` are in Hydra's grammar."""
    from omegaconf import OmegaConf

    from stages.pipeline.resolvers import register

    register()
    composed = _composed(conf, "config", overrides)
    OmegaConf.resolve(composed)
    with atomic_file(out) as part:
        part.write_text(OmegaConf.to_yaml(composed), encoding="utf-8")


def group_values(group: str, conf: Path = CONF) -> dict[str, Any]:
    """The values of one group as its default.yaml composes alone, for programs that are no stage.

    `${…}` is what config.yaml says there; where a preset has to say it, it stays as it is.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed = _composed(conf, f"{group}/default")[group]
    values: Any = OmegaConf.to_container(composed, resolve=False)
    shared: Any = OmegaConf.load(conf / "config.yaml")
    shared[group] = composed
    for name in composed:
        with suppress(OmegaConfBaseException):
            found = shared[group][name]
            values[name] = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    return values


def _composed(conf: Path, name: str, overrides: Sequence[str] = ()) -> Any:
    """What Hydra composes, beginning with one file of conf/."""
    import hydra

    with hydra.initialize_config_dir(str(conf.resolve()), version_base=None):
        return hydra.compose(name, overrides=list(overrides))


def choose(overrides: Sequence[str], conf: Path = CONF) -> None:
    """Compose into params.yaml, and have conf/config.yaml name the preset: a plain `dvc exp run` then stays with it.

    Raises:
        ValueError: there is no such preset.
    """
    config = conf / "config.yaml"
    before = config.read_text()
    preset = next((word.removeprefix("experiment=") for word in overrides if word.startswith("experiment=")), None)
    if preset is not None:
        known = presets(conf)
        if preset not in known:
            raise ValueError(f"experiment: given {preset!r}: there is {', '.join(known)}; make preset NAME=… begins another")
        config.write_text(_CHOICE.sub(lambda line: line[1] + preset, before, count=1))
    try:
        compose(PARAMS_FILE, overrides, conf)
    except BaseException:
        config.write_text(before)
        raise


def presets(conf: Path = CONF) -> list[str]:
    """The names of all presets."""
    folder = conf / "experiment"
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def main(argv: Sequence[str]) -> None:
    """Compose into params.yaml; an unknown setting or preset ends with one line and status 1."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return
    try:
        choose(argv)
    except YAMLError as error:
        print(f"compose: error: not YAML: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from error
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        print(f"compose: error: {str(error).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(sys.argv[1:])
