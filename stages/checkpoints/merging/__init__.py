"""Merging models: the methods, which tensors are merged with which weight, and a LoRA fused into a model's weights."""
