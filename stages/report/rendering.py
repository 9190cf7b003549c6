"""Templates of the report, and how numbers are written in them."""

from pathlib import Path

import jinja2

from stages.measures.statistics import Interval
from stages.report.findings import number, signed

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> jinja2.Template:
    """A template of `TEMPLATES`, which escapes every text that is put into it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"signed": signed, "number": number, "bounds": bounds}
    return environment.get_template(name)


def bounds(value: Interval) -> str:
    """The bounds of a confidence interval in words; empty where there is one unit only."""
    if value.low is None or value.high is None:
        return ""
    return f"{number(value.low)} to {number(value.high)}"
