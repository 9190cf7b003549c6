"""What embeddings say of images, and how sure that is. NumPy alone: no torch, no files but those of embeddings."""
