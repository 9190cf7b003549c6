"""The Hugging Face hub, held to limits that its client does not have."""
