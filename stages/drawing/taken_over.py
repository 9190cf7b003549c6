"""Pictures of the last run that a new one would draw again to the same bytes. Imports no torch.

A picture depends on its prompt, its seed and the seeds that it is drawn together with, and on all that `made_by` is the digest
of. So the pictures of a prompt are taken over together, or not at all: where the digest and the seeds are the same and no file
was changed since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.checkpoints.files.tensors import sha256
from stages.drawing.cells import Cell, read_cells
from stages.pipeline.tables import read_table, write_table

DRAWN_FILE = "drawn.csv"
COLUMNS = ("file_name", "sha256", "made_by")


@dataclass(frozen=True)
class Drawn:
    """What a folder holds that was drawn before.

    Attributes:
        of_prompt: by prompt, the seeds in their order, and the file of each.
    """

    of_prompt: dict[str, dict[int, Path]]

    def files(self, prompt: str, seeds: Sequence[int]) -> dict[int, Path]:
        """The pictures of a prompt by their seeds, which are these; none where they would have to be drawn."""
        found = self.of_prompt.get(prompt, {})
        return found if list(found) == list(seeds) else {}


def write_drawn(folder: Path, cells: Sequence[Cell], made_by: str) -> None:
    """Note how the pictures of a folder were made, and what they are."""
    rows = ((cell.file_name, sha256(folder / cell.file_name), made_by) for cell in cells)
    write_table(folder / DRAWN_FILE, COLUMNS, rows)


def read_drawn(folder: Path, made_by: str) -> Drawn:
    """What a folder holds that would be drawn again to the same bytes; nothing where it is missing or cannot be read."""
    try:
        notes = {row["file_name"]: row for row in read_table(folder / DRAWN_FILE, COLUMNS)}
        cells = read_cells(folder)
    except (OSError, ValueError):
        return Drawn({})
    of_prompt: dict[str, dict[int, Path]] = {}
    changed = set()
    for cell in cells:
        note, path = notes.get(cell.file_name), folder / cell.file_name
        if note is None or note["made_by"] != made_by or note["sha256"] != sha256(path):
            changed.add(cell.prompt)
        of_prompt.setdefault(cell.prompt, {})[cell.seed] = path
    return Drawn({prompt: files for prompt, files in of_prompt.items() if prompt not in changed})
