"""Encoded images and captions, made up."""

import torch

from stages.encoding.encoded_files import EncodedCaptions, EncodedImages


def make_images(names):
    mean = torch.arange(len(names)).float().view(-1, 1, 1, 1, 1).expand(-1, 2, 4, 2, 2)
    return EncodedImages(list(names), mean, torch.ones_like(mean), 0.18215, 64)


def make_captions(names):
    captions = [f"caption of {name}" for name in names]
    return EncodedCaptions(list(names), captions, torch.randn(len(names), 7, 3), torch.zeros(7, 3), 1)
