"""A model draws, with or without a LoRA, and an encoder looks at what it drew."""
