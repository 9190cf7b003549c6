"""Pictures and words as tensors: latents, embeddings of prompts, and the files that hold them."""
