"""What is said of the drawings: variants, scores, grids, charts, tables and the page. Imports no torch."""
