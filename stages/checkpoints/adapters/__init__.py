"""LoRA, DoRA, LoHa and LoKr files of any program: reading them, what they add to a weight, and writing kohya's form."""
