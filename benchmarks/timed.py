"""Run a training, and write down when each of its optimizer steps ended.

`python benchmarks/timed.py TIMES CLOCK [--compiled] TRAINING [its arguments]`, where TRAINING is a stage, as in
stages.train_text2img, or the path of one of diffusers' example scripts, and CLOCK is wall or cpu. TIMES gets the seconds, a
JSON list. With --compiled the stage believes that compiling costs nothing.
"""

import json
import runpy
import sys
import time
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def expect_free_compiling() -> None:
    """Make every training long enough for compiling to pay."""
    from stages.lora.expectations import EXPECTED, Expectation

    EXPECTED.update({name: Expectation(flops=1.0, saved=1.0, cost=0.0) for name in EXPECTED})


def main() -> None:
    """Run what the command line names."""
    times, clock = Path(sys.argv[1]), CLOCKS[sys.argv[2]]
    sys.argv = sys.argv[3:]
    if sys.argv[0] == "--compiled":
        sys.argv = sys.argv[1:]
        expect_free_compiling()
    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(clock()))
    if sys.argv[0].endswith(".py"):
        from peer import provide_transforms

        provide_transforms()
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    times.write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
