"""The names and shapes of a checkpoint's tensors, and what other programs call them. Reads no file."""
