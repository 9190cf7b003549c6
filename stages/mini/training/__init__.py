"""The programs that train the small models, and the models, tokenizers, loss and training loop that they share."""
