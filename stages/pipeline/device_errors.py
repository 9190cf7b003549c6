"""What a GPU cannot do, as torch says it in a `RuntimeError`, in words that name the setting. Imports no torch."""

import re

_NOT_DETERMINISTIC = re.compile(r"(\S+) (?:does not have a deterministic implementation|is not deterministic)")
_NOT_THERE = re.compile(r"operator '([^']+)' is not (?:currently )?(?:implemented|supported) for the (\w+)")
_MEMORY = re.compile(r"out of memory", re.IGNORECASE)

_OF_TRAINING = "train_batch_size (with gradient_accumulation_steps for the same batch), or set gradient_checkpointing=true"
LESS_MEMORY = {"train_text2img": _OF_TRAINING, "train_dreambooth": _OF_TRAINING}
"""The settings by which a stage takes less memory, where that is more than its batch_size."""


def explain_device_error(program: str, error: RuntimeError) -> str | None:
    """The cause and the cure in one line; None where it is another kind of error.

    Args:
        program: the stage, by whose settings the cure is named.
        error: as torch raised it.
    """
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or _MEMORY.search(text):
        first = text.strip().splitlines()[0] if text.strip() else "out of memory"
        return f"{first} Lower {program}.{LESS_MEMORY.get(program, 'batch_size')}, or the resolution"
    if "CUBLAS_WORKSPACE_CONFIG" in text:
        return "CUBLAS_WORKSPACE_CONFIG: must be :4096:8 or :16:8, for the same bytes each time: unset it in the environment"
    if found := _NOT_DETERMINISTIC.search(text):
        return (
            f"{found[1]} has no form on this device that gives the same bytes each time: choose other settings, or give that "
            "up with runtime.deterministic=false"
        )
    if found := _NOT_THERE.search(text):
        return f"torch has no {found[1]} for {found[2]}: set runtime.device=cpu, or PYTORCH_ENABLE_MPS_FALLBACK=1 on a Mac"
    return None
