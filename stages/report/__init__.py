"""The report on what the variants drew: scores, grids, charts, tables and the page. Imports no torch, see ruff.toml."""
