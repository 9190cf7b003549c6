"""Print where the report is, and its headline scores.

python -m stages.pipeline.summary data/report
"""

import json
import sys
from pathlib import Path


def main(report: Path) -> None:
    """Print the paths of the page and the grid, and the scores of metrics.json, a line each."""
    metrics = json.loads((report / "metrics.json").read_text())
    print(f"\nreport  {(report / 'index.html').resolve()}\ngrid    {(report / 'grid.png').resolve()}\n")
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
