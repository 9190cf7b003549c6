"""Merging models: the methods, which tensors meet, and a LoRA put into a model's weights."""
