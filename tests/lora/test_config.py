import pytest

from stages.lora.config import DreamboothConfig, Text2imgConfig
from stages.pipeline.config import ParamsError, validate
from tests.lora.settings import conf_values


def test_committed_settings_are_the_labs():
    config = validate("train_text2img", Text2imgConfig, conf_values("train_text2img"))
    assert config.lora_alpha == 4
    assert config.target_modules == ("to_k", "to_q", "to_v", "to_out.0")
    assert config.init_lora_weights == "gaussian"
    assert (config.tuned, config.peft_type, config.optimizer) == ("lora", "lora", "adamw_fused")
    assert (config.use_rslora, config.use_dora, config.lora_dropout, config.held_out_images) == (False, False, 0, 0)
    assert config.max_train_steps * config.effective_batch_size == 40 * 112


def test_dreambooth_differs_by_its_own_settings_only():
    values = conf_values("train_dreambooth", clip_skip=0)
    config = validate("train_dreambooth", DreamboothConfig, values)
    own = {"instance_prompt", "class_prompt", "clip_skip", "train_text_encoder"}
    assert set(vars(config)) >= own
    assert {name for name in values if name not in conf_values("train_text2img")} == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": 0}, "train_text2img.lora_alpha: given 0"),
        ({"lora_alpha": "ranks"}, "train_text2img.lora_alpha: given 'ranks'"),
        ({"max_train_steps": 0}, "train_text2img.max_train_steps: given 0"),
        ({"learning_rate": -1e-3}, "train_text2img.learning_rate: given -0.001"),
        ({"lr_scheduler": "cosin"}, "train_text2img.lr_scheduler: given 'cosin'"),
        ({"lr_warmup_steps": 5}, "train_text2img.lr_warmup_steps: given 5: must be less than max_train_steps"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 1}, "train_text2img.lr_warmup_steps: the schedule constant has none"),
        ({"peft_type": "lokr", "use_dora": True}, "train_text2img.use_dora: given True: lokr has none"),
        ({"peft_type": "loha", "lora_dropout": 0.1}, "train_text2img.lora_dropout: given 0.1: loha has none"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "train_text2img.init_lora_weights: given 'pissa': not together"),
        ({"lr_scheduler": "piecewise_constant"}, "train_text2img.lr_step_rules: set it with lr_scheduler=piecewise_constant"),
        ({"lr_step_rules": "1:10,0.1"}, "train_text2img.lr_step_rules: set it with"),
        ({"lr_step_rules": "a lot"}, "train_text2img.lr_step_rules: given 'a lot'"),
        ({"rank_pattern": {"to_q": 0}}, "train_text2img.rank_pattern.to_q: given 0"),
        ({"lora_dropout": 1}, "train_text2img.lora_dropout: given 1"),
        ({"num_processes": 5}, "train_text2img.num_processes: given 5: must be at most train_batch_size"),
        ({"optimizer": "sgd"}, "train_text2img.optimizer: given 'sgd'"),
        ({"target_modules": []}, "train_text2img.target_modules"),
        ({"caption_dropout": 1.1}, "train_text2img.caption_dropout: given 1.1"),
        ({"learnig_rate": 1}, "train_text2img.learnig_rate: no such parameter"),
    ],
)
def test_wrong_values_name_their_setting(changes, message):
    values = conf_values("train_text2img", max_train_steps=5) | changes
    with pytest.raises(ParamsError) as error:
        validate("train_text2img", Text2imgConfig, values)
    assert message in str(error.value)


def test_alpha_may_follow_the_rank():
    values = conf_values("train_text2img", lora_alpha="rank")
    assert validate("train_text2img", Text2imgConfig, values).lora_alpha == "rank"
