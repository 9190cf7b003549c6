"""Merge Stable Diffusion checkpoints, train LoRAs on the merge, compare the results: one module per DVC stage."""
