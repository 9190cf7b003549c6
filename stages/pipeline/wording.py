"""How numbers are said in messages."""

PROGRAM = "sd-merge-lora"
"""The name of this program."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 image, 2 images."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
