"""Adapters and their files, the losses, and the training loop that both LoRAs share."""
