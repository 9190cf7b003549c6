"""The drawings that the small models learn from and are measured on: how they are drawn, captioned and collected."""
