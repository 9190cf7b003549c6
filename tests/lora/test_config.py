import pytest

from stages.lora.config import DreamboothConfig, Text2imgConfig, check_rank, check_seed
from stages.pipeline.config import ParamsError, validate
from stages.pipeline.variants import kept_steps
from tests.lora.settings import conf_values, training_config


def test_committed_settings_are_the_labs():
    config = validate("train_text2img", Text2imgConfig, conf_values("train_text2img"))
    assert config.lora_alpha == 4
    assert config.target_modules == ("to_k", "to_q", "to_v", "to_out.0")
    assert config.init_lora_weights == "gaussian"
    assert (config.tuned, config.peft_type, config.optimizer) == ("lora", "lora", "adamw_fused")
    assert (config.use_rslora, config.use_dora, config.lora_dropout, config.keep_every) == (False, False, 0, None)
    assert config.max_train_steps * config.effective_batch_size == 40 * 112


def test_dreambooth_differs_by_its_own_settings_only():
    values = conf_values("train_dreambooth", clip_skip=0)
    config = validate("train_dreambooth", DreamboothConfig, values)
    own = {"instance_prompt", "instance_prompts", "class_prompt", "clip_skip"}
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
        ({"keep_every": 0}, "train_text2img.keep_every: given 0"),
        ({"keep_every": 2.5}, "train_text2img.keep_every: given 2.5"),
        ({"held_out_steps": 0}, "train_text2img.held_out_steps: given 0"),
        ({"prior_loss_weight": -1}, "train_text2img.prior_loss_weight: given -1"),
        ({"held_out_images": 2}, "train_text2img.held_out_images: no such parameter"),
        ({"seed": 1}, "train_text2img.seed: no such parameter"),
        ({"learnig_rate": 1}, "train_text2img.learnig_rate: no such parameter"),
    ],
)
def test_wrong_values_name_their_setting(changes, message):
    values = conf_values("train_text2img", max_train_steps=5) | changes
    with pytest.raises(ParamsError) as error:
        validate("train_text2img", Text2imgConfig, values)
    assert message in str(error.value)


@pytest.mark.parametrize(("keep_every", "steps"), [(3, [3, 6, 9]), (5, [5]), (10, []), (11, []), (None, [])])
def test_what_is_kept_is_kept_every_so_many_steps_and_never_at_the_end(keep_every, steps):
    """By the training, as by the sweep that draws it."""
    config = training_config(keep_every=keep_every, max_train_steps=10)
    assert [step for step in range(1, 11) if config.keeps(step)] == steps
    assert kept_steps(keep_every, 10) == steps


def test_a_rank_and_a_seed_that_cannot_be_are_refused():
    check_rank(1)
    check_seed(0)
    with pytest.raises(ValueError, match="--rank: given 0: must be at least 1"):
        check_rank(0)
    with pytest.raises(ValueError, match="--seed: given -1: must be at least 0"):
        check_seed(-1)


def test_alpha_may_follow_the_rank():
    values = conf_values("train_text2img", lora_alpha="rank")
    assert validate("train_text2img", Text2imgConfig, values).lora_alpha == "rank"
