"""Parsl: workers on this machine, of Slurm, of PBS, of Kubernetes. Imported where it is used, for it is an extra."""

import os
import pickle
import shlex
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from stages.pipeline.distribute.cell import GUARD, Outcome, Task, run_cell
from stages.pipeline.distribute.remote import Parcel
from stages.pipeline.wording import counted

CONF = Path("conf")
LOCAL = "parsl.providers.LocalProvider"
OVER_SSH = Path(__file__).with_name("over_ssh.py")
SECONDS_TO_CLOSE = 20.0
LOST = ("WorkerLost", "ManagerLost")


def read_cluster(arguments: Sequence[str], conf: Path = CONF) -> dict[str, Any]:
    """The settings of conf/cluster.

    Args:
        arguments: `cluster=NAME`, and others in Hydra's grammar, such as cluster.executors.0.provider.partition=gpu.
        conf: the folder of all settings.

    Raises:
        ValueError: there is no such cluster or no such setting, or one is missing.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = next((word.removeprefix("cluster=") for word in arguments if word.startswith("cluster=")), "local")
    known = sorted(file.stem for file in (conf / "cluster").glob("*.yaml"))
    if name not in known:
        raise ValueError(f"cluster: given {name!r}: there is {', '.join(known)}")
    try:
        with hydra.initialize_config_dir(str(conf.resolve()), version_base=None):
            composed = hydra.compose(f"cluster/{name}", [word for word in arguments if not word.startswith("cluster=")])
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"conf/cluster/{name}.yaml: {str(error).splitlines()[0]}") from error
    return values["cluster"]


def fill_in(executor: dict[str, Any], runtime: Mapping[str, Any], gpus: int, cores: int) -> None:
    """Say how many workers an executor of this machine has, where the settings leave that open; in place.

    Args:
        executor: its settings.
        runtime: the section of params.yaml.
        gpus: of this machine.
        cores: of this machine's CPU that this process may use.

    Raises:
        ValueError: more workers than cores for their threads, or than GPUs.
    """
    if executor["provider"]["_target_"] != LOCAL or "hosts" in executor:
        return
    threads, on_gpus = runtime["threads"], runtime["device"] == "cuda" or (runtime["device"] == "auto" and gpus > 0)
    room = max(1, min(gpus, cores // threads) if on_gpus else cores // threads)
    workers = executor["max_workers_per_node"] or room
    if workers > room:
        have = f"{counted(gpus, 'GPU')} and {counted(cores, 'core')}" if on_gpus else counted(cores, "core")
        raise ValueError(
            f"cluster.executors: max_workers_per_node: given {workers}: this machine has {have}, and each stage computes with "
            f"{counted(threads, 'thread')} (runtime.threads, on which the bytes depend): at most {room}"
        )
    executor["max_workers_per_node"] = workers
    if on_gpus and not executor["available_accelerators"]:
        executor["available_accelerators"] = [str(number) for number in range(workers)]


def gpu_count() -> int:
    """The GPUs of this machine that NVIDIA's driver lists; asked for without torch, which takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip()])
    lister = shutil.which("nvidia-smi")
    listed = subprocess.run([lister, "-L"], capture_output=True, text=True, check=False).stdout if lister else ""
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def core_count() -> int:
    """The cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def label_for(labels: Sequence[str], computes: bool) -> str:
    """The executor of a stage: "gpu" for those that compute and "cpu" for the others, where there are such; else the first."""
    wanted = "gpu" if computes else "cpu"
    return wanted if wanted in labels else labels[0]


class Engine:
    """The workers; to be closed.

    Args:
        cluster: from `read_cluster`, filled in.
        snapshot: the code that workers run, who see it.
        run_dir: for what Parsl writes; where the nodes see it, but for those that ssh reaches.
        parcel: the code for workers that do not see it; else None.

    Raises:
        ValueError: Parsl is not installed, or refuses the settings.
    """

    def __init__(self, cluster: Mapping[str, Any], snapshot: Path, run_dir: Path, parcel: Parcel | None) -> None:
        try:
            import parsl
        except ImportError as error:
            raise ValueError("cluster: Parsl is not installed: pip install '.[cluster]' (make venv does)") from error
        import hydra

        programs = Path(sys.executable).parent
        init = f"export PATH={programs}:$PATH" + ("" if parcel else f" PYTHONPATH={snapshot}")
        executors = []
        for settings in cluster["executors"]:
            provider = settings["provider"]
            own = {"worker_init": "\n".join(filter(None, [init, provider.get("worker_init", "")]))}
            interchange = [sys.executable, "-S", str(GUARD), str(programs / "interchange.py")]
            whole = {**settings, "provider": {**provider, **own}, "interchange_launch_cmd": interchange}
            try:
                whole |= _launching(whole, parcel is not None)
                executors.append(hydra.utils.instantiate(whole, _convert_="all"))
            except Exception as error:  # Hydra wraps whatever the constructor raises
                reason = " ".join(str(error.__cause__ or error).split())
                raise ValueError(f"cluster.executors: {settings['label']}: {reason}") from error
        config = parsl.Config(
            executors=executors, strategy="simple", run_dir=str(run_dir), initialize_logging=False, usage_tracking=0
        )
        self.kernel = parsl.load(config)
        self.labels = [settings["label"] for settings in cluster["executors"]]
        self.parcel, self.scratch = parcel, cluster["scratch"]
        function = by_value(unpack_and_run) if parcel else run_cell
        self.apps = {label: parsl.python_app(function, executors=[label], cache=False) for label in self.labels}

    def submit(self, task: Task, label: str) -> "Future[Outcome]":
        """Have a worker do it."""
        if self.parcel is not None:
            return self.apps[label]((self.parcel.digest, self.parcel.archive), self.scratch, pickle.dumps(task))
        return self.apps[label](task)

    def broken(self) -> str:
        """Why no worker will ever come; "" while there is hope."""
        for executor in self.kernel.executors.values():
            interchange = getattr(executor, "interchange_proc", None)
            if interchange is not None and interchange.poll() is not None:
                return f"Parsl's interchange has ended (status {interchange.returncode})"
        return ""

    def ended(self) -> str:
        """How the job of a worker ended that was lost; "" where that is not known."""
        known = [each for each in self.kernel.executors.values() if getattr(each, "provider", None) is not None]
        states = [status.state.name for executor in known for status in executor.status().values()]
        walltimes = [getattr(executor.provider, "walltime", "") for executor in known]
        return describe_ends(states, next(filter(None, walltimes), ""))

    def close(self) -> None:
        """End all workers, and what they do."""
        if self.broken():  # Parsl would wait for an answer
            for executor in self.kernel.executors.values():
                if provider := getattr(executor, "provider", None):
                    provider.cancel(list(executor.blocks_to_job_id.values()))
            return
        closing = threading.Thread(target=self.kernel.cleanup, daemon=True)
        closing.start()
        closing.join(SECONDS_TO_CLOSE)


def _launching(settings: dict[str, Any], carried: bool) -> dict[str, Any]:
    """How the pool of workers is started; what is said of ssh, and Parsl does not know, is taken out of the settings."""
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    guarded = f"{sys.executable} -S {GUARD}"
    hosts, programs, options = (settings.pop(name, None) for name in ("hosts", "programs", "ssh_options"))
    if hosts is None:
        return {"launch_cmd": DEFAULT_LAUNCH_CMD if carried else f"{guarded} {DEFAULT_LAUNCH_CMD}"}
    command = DEFAULT_LAUNCH_CMD.replace("{logdir}", "{cert_dir}")
    words = [sys.executable, "-S", str(OVER_SSH), *hosts, "--programs", str(programs), f"--options={options or ''}"]
    blocks = {"init_blocks": len(hosts), "min_blocks": len(hosts), "max_blocks": len(hosts)}
    return {
        "launch_cmd": f"{guarded} {shlex.join(words)} --keys {{cert_dir}} --port {{worker_port}} -- {command}",
        "provider": {**settings["provider"], **blocks},
    }


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that travels with its code, to a worker that has no such module: dill does so with what a script defines."""
    copied = types.FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)
    copied.__module__ = "__main__"
    return copied


def unpack_and_run(parcel: tuple[str, bytes], scratch: str, task: bytes) -> Any:
    """On a worker, before anything of this project is there; hence all its imports are its own.

    Args:
        parcel: the sha256 of the archive, and the archive.
        scratch: the worker's folder; `~` and variables are the worker's own.
        task: pickled.
    """
    import io
    import os
    import pathlib
    import pickle
    import shutil
    import sys
    import tarfile
    import tempfile

    home = pathlib.Path(os.path.expandvars(scratch)).expanduser().absolute()
    code = home / "code" / parcel[0]
    if not code.is_dir():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        code.parent.mkdir(exist_ok=True)
        part = tempfile.mkdtemp(dir=code.parent)
        with tarfile.open(fileobj=io.BytesIO(parcel[1])) as archive:
            archive.extractall(part, filter="data")
        try:
            pathlib.Path(part).rename(code)
        except OSError:  # another worker was first
            shutil.rmtree(part)
    if str(code) not in sys.path:
        sys.path.insert(0, str(code))
    from stages.pipeline.distribute.cell import run_carried

    return run_carried(pickle.loads(task), code, home)


def describe_ends(states: Sequence[str], walltime: str) -> str:
    """What the states of jobs say of a worker that was lost; the last that says something.

    Args:
        states: as Parsl names them. A scheduler without accounting says of each job that is gone that it was completed.
        walltime: of a job; "" where there are no jobs.
    """
    said = {
        "TIMEOUT": f"the scheduler ended its job: its wall time ({walltime}) was over, or it was preempted",
        "FAILED": "its job failed",
        "CANCELLED": "its job was cancelled",
        "COMPLETED": f"its job is gone: its wall time ({walltime}) may be over" if walltime else "",
        "MISSING": "the scheduler does not know its job any more",
    }
    return next((text for state in reversed(states) if (text := said.get(state))), "")


def is_lost(error: BaseException) -> bool:
    """Whether a stage failed because its worker is no more."""
    return type(error).__name__ in LOST
