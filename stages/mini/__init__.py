"""How the small models in data/mini were made: drawings, VAE, ancestor, fine-tunes, captioner, scorer, and their judge."""
