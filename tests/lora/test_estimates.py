import pytest
import torch

from stages.lora.estimates import describe_loaders
from stages.lora.tuned_model import Tuned
from tests.lora.settings import training_config


def tuned(*parts: str) -> Tuned:
    return Tuned(torch.nn.Identity(), {part: torch.nn.Identity() for part in parts}, {})


@pytest.mark.parametrize(
    ("parts", "settings", "said"),
    [
        (["unet"], {}, ""),
        (["unet", "text_encoder"], {}, ""),
        (["unet"], {"use_dora": True}, ""),
        (["unet", "text_encoder"], {"use_dora": True}, "leaves out the lengths that DoRA learns on the text encoder"),
        (["unet"], {"peft_type": "lokr"}, "load_lora_weights refuses LoKr: the file is read by PEFT and by this pipeline"),
        (["unet"], {"peft_type": "loha"}, "load_lora_weights refuses LoHa"),
        (["unet"], {"peft_type": "loha", "tuned": "full"}, ""),
    ],
)
def test_who_reads_the_file_is_said_where_not_everybody_does(parts, settings, said):
    text = describe_loaders(tuned(*parts), training_config(**settings))
    assert said in text
    assert bool(text) == bool(said)
