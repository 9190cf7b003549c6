"""How well the small models do on drawings and prompts held out from training. Imports nothing of training."""
