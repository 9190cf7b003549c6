r"""Tables as csv files: UTF-8, a header, lines that end with \n, and any text in a cell."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a csv file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(_line(columns))
        file.writelines(map(_line, rows))


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a csv file with a header; other columns than the required ones are kept.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a required column is missing, a row is cut off, or the file is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a csv file in UTF-8 ({error})") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]}; it has: {', '.join(header) or 'none'}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} does not have as many cells as the header")
    return rows


def _line(row: Sequence[object]) -> str:
    r"""One row. The csv module quotes a cell for what ends its own lines: a lone \r only where they end with \r\n."""
    text = StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().removesuffix("\r\n") + "\n"
