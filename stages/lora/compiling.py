"""Compilation of a UNet, where it saves more time than it costs.

On a CPU it is compiled as a whole, C++ from end to end: that saves more than twice as much as compiling the blocks that it
repeats. On a GPU these blocks alone are compiled, as diffusers advises, because they hold most of what there is to save, and
compile in a fraction of the time. What was compiled is kept, and found again by the next run of the same shapes.

Whether it pays is reckoned from the number of steps, never from a clock: a run is compiled or not each time alike, resumed or
not, and ends with the same bytes.
"""

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftType
from torch import Tensor
from torch._inductor import config as inductor_config

from stages import lora
from stages.lora.expectations import EXPECTED
from stages.lora.processes import process_number
from stages.pipeline import CACHE_VARIABLE
from stages.pipeline.resume import run_digest
from stages.pipeline.seals import is_own, is_whole, sealed_file

WHOLE: Mapping[str, Any] = {
    "backend": "inductor",
    "options": {"cpp_wrapper": True, "cpp_wrapper_build_separate": True, "cpp_cache_precompile_headers": False},
}
"""The calls of the kernels in C++ too, 6 % of a step; compiled on their own, or the compiler takes twice as long.

There are four files to compile: headers compiled beforehand would save less than looking for them takes each time.
"""


def compile_unet(unet: Any, steps: int, device: torch.device) -> None:
    """Compile the UNet, in place, if that pays; say so.

    Args:
        unet: ready for training, on its device, with batches of one shape: each other shape would be compiled anew.
        steps: forward and backward passes of the whole run.
        device: where it runs.
    """
    expected = EXPECTED.get(device.type)
    if expected is None or unet.is_gradient_checkpointing or not _can_compile(device) or not _can_trace(unet, device):
        return
    matrices = sum(parameter.ndim > 1 for parameter in unet.parameters())
    saved, cost = expected.saved * matrices * steps, expected.cost * matrices
    if saved <= cost:
        return
    if device.type == "cuda":
        unet.compile_repeated_blocks()
    else:
        unet.forward = CompiledForward(unet, WHOLE)
    if process_number() == 0:
        print(
            f"the UNet is compiled: that takes about {cost:.0f} s, a few where it was done before, "
            f"and saves about {saved / 60:.0f} min",
            flush=True,
        )


class CompiledForward:
    """The forward pass of a UNet: compiled while it is trained, with its backward pass; its own at other times.

    What is compiled is written to a file, and the next process reads it in place of tracing the UNet again, which takes longer
    than all else before the first step. The file's name is a digest of all that the compiled code depends on, so that nothing
    is checked when it is called but the inputs' shapes.

    Args:
        unet: ready for training.
        how: arguments of `torch.compile`.
    """

    def __init__(self, unet: Any, how: Mapping[str, Any]) -> None:
        self.unet, self.how = unet, how
        self.compiled: dict[tuple[object, ...], Callable[..., Tensor]] = {}

    def __call__(self, *inputs: Tensor, return_dict: bool = True) -> Any:
        """The prediction for (latents, timesteps, prompt embeddings), as `UNet2DConditionModel.forward` returns it."""
        if return_dict or not self.unet.training or not torch.is_grad_enabled():
            return type(self.unet).forward(self.unet, *inputs, return_dict=return_dict)
        signature = tuple(_layout(tensor) for tensor in inputs)
        if signature not in self.compiled:
            path = self._path(signature)
            self.compiled[signature] = self._find(path) or self._compile(path, inputs)
        return (self.compiled[signature](self.unet, *inputs),)

    def _compile(self, path: Path, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """Compile for such inputs, and keep it in the file `path`."""
        options = {**self.how.get("options", {}), "guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        function: Any = torch.compile(_predict, fullgraph=True, dynamic=False, **{**self.how, "options": options})
        compiled = function.aot_compile(((self.unet, *inputs), {}))
        with sealed_file(path) as part:
            compiled.save_compiled_function(str(part))
        return compiled

    def _find(self, path: Path) -> Callable[..., Tensor] | None:
        """What was compiled before, from its file; None if there is none, or none that can be read.

        Reading executes what the file says, so it must be this user's own, and what was written.
        """
        if not path.is_file():
            return None
        if not is_own(path.parent):
            print(f"{path}: compiled anew, because others than this user may write there", flush=True)
            return None
        if not is_whole(path):
            damaged = path.replace(path.with_name("damaged"))
            print(f"{path}: compiled anew, because it is not what was written; set aside as {damaged}", flush=True)
            return None
        # Inductor takes two seconds to try out which instructions can be used; those of the file's code can
        for known in (True, None):
            options = {**self.how.get("options", {}), "cpp.vec_isa_ok": known}
            try:
                with inductor_config.patch(options), path.open("rb") as file:
                    return torch.compiler.load_compiled_function(file)
            except Exception as error:  # whatever a file that was cut short or is of another machine leads to
                reason = error
        print(f"{path}: compiled anew, because it cannot be read: {reason}", flush=True)
        return None

    def _path(self, signature: tuple[object, ...]) -> Path:
        """The file of what is compiled for such inputs, under a name made of all that it depends on."""
        device = self.unet.device.type
        adapters = {name: config.to_dict() for name, config in getattr(self.unet, "peft_config", {}).items()}
        settings = {
            "inputs": signature,
            "how": self.how,
            "model": {key: value for key, value in self.unet.config.items() if not key.startswith("_")},  # not its folder
            "adapters": {name: {key: _plain(value) for key, value in values.items()} for name, values in adapters.items()},
            "weights": [(name, _layout(tensor)) for name, tensor in self.unet.state_dict(keep_vars=True).items()],
            "autocast": (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "precision": torch.get_float32_matmul_precision(),
            "machine": (platform.machine(), platform.python_version(), torch.backends.cpu.get_cpu_capability()),
            "threads": torch.get_num_threads(),
        }
        return Path(os.environ[CACHE_VARIABLE]) / f"unet-{run_digest(settings, [Path(lora.__path__[0])])}"


def _predict(unet: Any, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
    """What is compiled."""
    return type(unet).forward(unet, latents, timesteps, prompt_embeds, return_dict=False)[0]


def _layout(tensor: Tensor) -> tuple[object, ...]:
    """What compiled code depends on in a tensor."""
    return tuple(tensor.shape), tensor.stride(), str(tensor.dtype), tensor.requires_grad


def _plain(value: Any) -> Any:
    """A setting in an order of its own: PEFT keeps some in sets."""
    return sorted(value) if isinstance(value, set) else value


def _can_trace(unet: Any, device: torch.device) -> bool:
    """Whether the UNet can be compiled as a whole: layers of DoRA, LoKr and LoHa look at values, of which tracing has none."""
    adapters = getattr(unet, "peft_config", {}).values()
    return device.type == "cuda" or all(adapter.peft_type == PeftType.LORA and not adapter.use_dora for adapter in adapters)


def _can_compile(device: torch.device) -> bool:
    """Whether there is what torch needs: a C++ compiler, or Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)
