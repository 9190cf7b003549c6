"""Stable Diffusion checkpoints: their formats, the names of their tensors, merging, and what other tools load."""
