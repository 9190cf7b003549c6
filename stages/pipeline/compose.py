"""Compose conf/ into params.yaml, as `dvc exp run` does it.

python -m stages.pipeline.compose                          # the default experiment
python -m stages.pipeline.compose experiment=asuka         # another preset
python -m stages.pipeline.compose train_text2img.learning_rate=5e-4 'sweep.alpha=[0.5,0.7]'
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from stages.pipeline.config import PARAMS_FILE
from stages.pipeline.outputs import atomic_file

PLUGINS = Path(__file__).parent / "plugins"


def compose(out: Path, overrides: Sequence[str] = (), conf: Path = Path("conf")) -> None:
    """Write the composed parameters to `out`; `overrides` are in Hydra's grammar."""
    from dvc.utils.hydra import compose_and_dump

    with atomic_file(out) as part:
        composed = part.with_suffix(".yaml")
        try:
            compose_and_dump(str(composed), str(conf.resolve()), None, "config", str(PLUGINS), list(overrides))
            composed.replace(part)
        finally:
            composed.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> None:
    """Compose into params.yaml; an unknown leaf or preset ends with one line and status 1."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return
    try:
        compose(PARAMS_FILE, argv)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"compose: error: {str(error).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(sys.argv[1:])
