"""LoRA files and their kin, of any program: reading them, what they add to a weight, and kohya's form of them."""
