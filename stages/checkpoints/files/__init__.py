"""The bytes of checkpoints: tensors that are read when they are needed, and the files they lie in. Knows no key names."""
