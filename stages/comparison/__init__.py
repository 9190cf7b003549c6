"""What the models draw, how it is scored, and the report that puts it side by side."""
