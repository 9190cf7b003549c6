import platform
import subprocess
import sys

import pytest
import torch

from stages.pipeline.config import RuntimeConfig
from stages.pipeline.torch_runtime import AVAILABLE, computation, device_name, prepare, runtime_of
from tests.runtime import CPU

FAULTS = """
import ctypes, resource
from stages.pipeline.torch_runtime import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
KEEP
size = 24 * 2**20
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(6)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_determinism_is_demanded_and_not_wished_for(as_before, deterministic, tf32):
    runtime = RuntimeConfig(**CPU | {"deterministic": deterministic, "tf32": tf32})
    assert prepare(runtime) == torch.device("cpu")
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() != deterministic  # its backward pass differs from run to run
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_a_gpu_that_is_not_there_is_refused(as_before, monkeypatch, device):
    monkeypatch.setattr("stages.pipeline.torch_runtime.AVAILABLE", dict.fromkeys(AVAILABLE, lambda: False))
    with pytest.raises(ValueError, match=f"runtime.device: {device} asked for"):
        prepare(RuntimeConfig(**CPU | {"device": device}))


def test_what_a_file_says_of_the_computation_gives_the_settings_back():
    runtime = RuntimeConfig(**CPU | {"threads": 3, "dtype": "bfloat16"})
    said = computation(runtime, torch.device("cpu"))
    assert said == {"device": "cpu", "threads": 3, "dtype": "bfloat16"}  # nothing of what counts on GPUs alone
    assert runtime_of(said) == runtime


def test_switches_of_gpus_are_said_where_there_is_one():
    runtime = RuntimeConfig(**CPU | {"device": "mps", "tf32": True, "cuda_graphs": False, "deterministic": False})
    said = computation(runtime, torch.device("mps"))
    assert said["tf32"] and not said["cuda_graphs"] and not said["deterministic"]
    assert runtime_of(said) == runtime


def test_what_computes_is_called_by_what_results_depend_on():
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_memory_that_was_freed_is_taken_again_without_page_faults():
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", FAULTS.replace("KEEP", line)], capture_output=True, check=True).stdout)
        for line in ("keep_freed_memory()", "")
    )
    assert kept < 100
    assert returned > 1000  # else the setting has become needless
