"""Run a training in turns (see turns.py), and write down when each of its optimizer steps ended.

`python benchmarks/timed.py TIMES STEPS TURN TRAINING [its arguments]`, where TRAINING is a stage, as in stages.train_text2img,
or the path of one of diffusers' example scripts, that makes so many STEPS. The steps of a script are those of its optimizer;
those of a stage are told by its loop, because a step that was recorded (a CUDA graph) calls no optimizer.
"""

import runpy
import sys
from pathlib import Path

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from turns import Turns


def main() -> None:
    """Run what the command line names."""
    turns = Turns(Path(sys.argv[1]).absolute(), int(sys.argv[2]), int(sys.argv[3]))
    sys.argv = sys.argv[4:]
    if sys.argv[0].endswith(".py"):
        from peer import provide_transforms

        register_optimizer_step_post_hook(turns.step_ended)
        provide_transforms()
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        from stages.lora.loop import TrainingState

        update = TrainingState.update

        def timed_update(state: TrainingState, loss: Tensor) -> None:
            update(state, loss)
            turns.step_ended()

        TrainingState.update = timed_update
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
