import pytest
import torch

from stages.lora.text2img import pair_captions
from tests.encoding.small_encodings import make_captions, make_images


def test_captions_find_their_images_by_name():
    captions = make_captions("ca")
    examples = pair_captions(make_images("abc"), captions, 1.0)
    assert examples.mean[:, 0, 0, 0, 0].tolist() == [2, 0]
    assert torch.equal(examples.prompt_embeds, captions.prompt_embeds)
    with pytest.raises(ValueError, match="d has a caption and was not encoded"):
        pair_captions(make_images("abc"), make_captions("ad"), 1.0)
