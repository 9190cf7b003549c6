import platform
import subprocess
import sys

import pytest
import torch

from stages.pipeline.torch_runtime import device_name

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
