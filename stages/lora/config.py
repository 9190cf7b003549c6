"""What one training is told: the settings that both kinds of LoRA share, and those of either. Imports no torch."""

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from stages.lora.adapter_config import AdapterConfig, BelowOne
from stages.lora.objective import LossConfig, NoiseConfig
from stages.pipeline.config import ClipSkip, Count, Fraction, NonNegative, Positive, Table, Text, strict

OPTIMIZER_PACKAGES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""What an optimizer needs besides torch."""
OPTIMIZER_BYTES = {"adamw_fused": 8, "adamw": 8, "adamw_8bit": 2, "prodigy": 16}
"""What an optimizer remembers of each trained weight."""

Step = Annotated[int, Field(ge=0)]


def _is_optimizer(name: str) -> str:
    if name not in OPTIMIZER_BYTES and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        raise ValueError(f"take one of {', '.join(OPTIMIZER_BYTES)}, or an import path such as torch.optim.Adafactor")
    return name


Optimizer = Annotated[str, AfterValidator(_is_optimizer)]
Block = Annotated[str, Field(pattern=r"^((IN|OUT)\d\d|M00|text_encoder)$")]


def _with_place(value: str) -> str:
    if value.count("{}") != 1 or value.replace("{}", "").strip("{}") != value.replace("{}", ""):
        raise ValueError("a template has {} once, for the word")
    return value


Template = Annotated[str, AfterValidator(_with_place)]


@dataclass(frozen=True, config=strict)
class OptimizerConfig:
    """How the weights follow their gradients.

    Attributes:
        optimizer: "adamw_fused" and "adamw" are the same formula, computed in one pass or in several; "adamw_8bit" keeps its
            moments in 8 bits (package bitsandbytes); "prodigy" finds the learning rate itself (package prodigyopt;
            Mishchenko & Defazio 2023, arXiv:2306.06101) and wants a learning_rate of 1. Or any other by its import path, such
            as torch.optim.Adafactor or schedulefree.AdamWScheduleFree, which is given the learning rate and optimizer_args.
        optimizer_args: what an optimizer that is named by its import path is given; the adam_ settings are not for it.
        max_train_steps: optimizer steps.
        learning_rate: the highest one, reached after the warm-up.
        lr_scheduler: its course afterwards, by diffusers' names.
        lr_warmup_steps: optimizer steps in which it rises from 0; "constant" and "piecewise_constant" have none.
        lr_num_cycles: restarts of cosine_with_restarts.
        lr_power: exponent of polynomial.
        lr_step_rules: of piecewise_constant: "1:10,0.1:20,0.01" is all of it for 10 steps, a tenth up to step 20, then a
            hundredth; null for the others.
        adam_beta1: the optimizer's decay of the mean of gradients.
        adam_beta2: its decay of the mean of squared gradients.
        adam_weight_decay: share of a weight that is taken off at each step, times the learning rate.
        adam_epsilon: added to the optimizer's denominator.
        max_grad_norm: gradients are scaled down to this norm, over all trained weights; null leaves them.
        loraplus_lr_ratio: the learning rate of a LoRA's second factor, B, is so many times that of the first (LoRA+, Hayou et
            al. 2024, arXiv:2402.12354, recommend 16); null for the same.
        block_lr: factors on the learning rate by block of the UNet (IN00 to IN11, M00, OUT00 to OUT11, as merge.blocks), or
            of "text_encoder"; 0 leaves it as it is.
        ema_decay: what is drawn and written is the average of the weights over the steps, in which a step counts so many times
            as much as the one after it; null for the weights after the last step.
    """

    optimizer: Optimizer
    optimizer_args: Table[Text, Any]
    max_train_steps: Count
    learning_rate: Positive
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "piecewise_constant",
    ]
    lr_warmup_steps: Step
    lr_num_cycles: Count
    lr_power: Positive
    lr_step_rules: Annotated[str, Field(pattern=r"^(\d+(\.\d*)?:\d+,)*\d+(\.\d*)?$")] | None
    adam_beta1: BelowOne
    adam_beta2: BelowOne
    adam_weight_decay: NonNegative
    adam_epsilon: Positive
    max_grad_norm: Positive | None
    loraplus_lr_ratio: Positive | None
    block_lr: Table[Block, NonNegative]
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None

    def __post_init__(self) -> None:
        """Refuse a warm-up that the schedule ignores or that never ends, and rules that nobody reads."""
        if self.optimizer_args and self.optimizer in OPTIMIZER_BYTES:
            raise ValueError(f"optimizer_args: {self.optimizer} has the adam_ settings; these are for an import path")
        if self.lr_scheduler in ("constant", "piecewise_constant") and self.lr_warmup_steps:
            raise ValueError(
                f"lr_warmup_steps: the schedule {self.lr_scheduler} has none; take constant_with_warmup, or set this to 0"
            )
        if self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(f"lr_warmup_steps: given {self.lr_warmup_steps}: must be less than max_train_steps")
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError("lr_step_rules: set it with lr_scheduler=piecewise_constant, and only with that")


@dataclass(frozen=True, config=strict)
class TrainingConfig(AdapterConfig, OptimizerConfig, LossConfig, NoiseConfig):
    """One training run on a UNet.

    Attributes:
        tuned: "lora" trains an adapter; "full" all weights of the UNet, and writes a whole model; "embedding" a word alone, in
            the one stage that teaches words.
        train_text_encoder: give the text encoder an adapter too, of the same kind and rank; it is then in memory, and embeds
            the prompts at each step.
        num_processes: processes that share each batch, on this machine: one for each GPU, or with a share of the CPU threads.
        train_batch_size: images of one forward pass, over all processes.
        gradient_accumulation_steps: forward passes of one optimizer step. Batches run on across epochs, so none is partial.
        random_flip: show half of the images as their mirror images.
        unmasked_weight: of what the masks of images leave out, in the loss: 0 leaves it out, 1 makes masks count for nothing.
        prior_loss_weight: of the class images in the loss, where there are any; 1 counts them as much as the subject, 0 leaves
            them out.
        gradient_checkpointing: compute activations twice instead of keeping them: slower, and less memory.
        compile: whether the blocks that the UNet repeats are compiled (torch.compile): minutes before the first step, and
            less time for each; on a CPU this takes a C++ compiler. The last bits of the weights depend on it.
        held_out_steps: optimizer steps between two measurements of the held-out images' loss, where there are such images;
            there is one at the end, too.
        preview_prompts: what is drawn while training, with the weights as they are, to see over-fitting; none for no images.
        preview_steps: optimizer steps between two such drawings; there is one at the end, too.
        preview_guidance_scale: weight of the prompt in them.
        keep_every: optimizer steps between two LoRAs that are kept, each to be drawn like the last; null keeps the last alone.
    """

    tuned: Literal["lora", "full", "embedding"]
    train_text_encoder: bool
    num_processes: Annotated[int, Field(ge=1, le=64)]
    train_batch_size: Count
    gradient_accumulation_steps: Count
    random_flip: bool
    unmasked_weight: Fraction
    prior_loss_weight: NonNegative
    gradient_checkpointing: bool
    compile: bool
    held_out_steps: Count
    preview_prompts: tuple[Text, ...]
    preview_steps: Count
    preview_guidance_scale: NonNegative
    keep_every: Count | None

    def __post_init__(self) -> None:
        """The checks of all parts."""
        for part in (AdapterConfig, OptimizerConfig, LossConfig, NoiseConfig):
            part.__post_init__(self)
        if self.loraplus_lr_ratio is not None and (self.tuned != "lora" or self.peft_type != "lora" or self.peft):
            raise ValueError("loraplus_lr_ratio: only with tuned=lora and peft_type=lora, which has the two factors")
        if self.train_text_encoder and self.tuned != "lora":
            raise ValueError("train_text_encoder: given True: only with tuned=lora")
        if self.tuned == "embedding" and not isinstance(self, TextualInversionConfig):
            raise ValueError("tuned: given 'embedding': a word is taught by train_textual_inversion; here it is lora or full")
        if self.num_processes > self.train_batch_size:
            raise ValueError(f"num_processes: given {self.num_processes}: must be at most train_batch_size")

    @property
    def effective_batch_size(self) -> int:
        """Images of one optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def of_weights(self) -> dict[str, Any]:
        """The settings that the trained weights depend on: all but those of previews, held-out losses and what is kept."""
        return {
            name: value
            for name, value in asdict(self).items()
            if not name.startswith(("preview_", "held_out_")) and name != "keep_every"
        }

    @property
    def can_be_recorded(self) -> bool:
        """Whether a CUDA graph can hold a step.

        Gradient checkpointing saves states of random generators, and PEFT's LoKr and LoHa wait for their scale; what other
        adapters do is not known.
        """
        return not self.gradient_checkpointing and (self.tuned != "lora" or (self.peft_type == "lora" and not self.peft))

    def measures_held_out(self, step: int) -> bool:
        """Whether the loss of held-out images is measured when so many optimizer steps are done."""
        return step == self.max_train_steps or step % self.held_out_steps == 0

    def keeps(self, step: int) -> bool:
        """Whether what is trained is kept when so many optimizer steps are done, the end apart."""
        return self.keep_every is not None and step < self.max_train_steps and step % self.keep_every == 0

    def draws_previews(self, step: int) -> bool:
        """Whether previews are drawn when so many optimizer steps are done."""
        return bool(self.preview_prompts) and (step == self.max_train_steps or step % self.preview_steps == 0)


@dataclass(frozen=True, config=strict)
class Text2imgConfig(TrainingConfig):
    """A training on images with captions.

    Attributes:
        caption_dropout: share of the images that are trained with the empty caption, for classifier-free guidance.
        shuffle_caption: put the tags of captions, which stand between commas, in another order each epoch (kohya's name, as the
            following).
        keep_tokens: how many tags at the beginning stay where they are, and are never left out.
        caption_tag_dropout: share of the other tags that are left out, each by itself.
        caption_dropout_every_n_epochs: train with the empty caption in every so manieth epoch; null for never.
    """

    caption_dropout: Fraction
    shuffle_caption: bool
    keep_tokens: Step
    caption_tag_dropout: Fraction
    caption_dropout_every_n_epochs: Count | None


@dataclass(frozen=True, config=strict)
class DreamboothConfig(TrainingConfig):
    """A training on images of one subject, under one prompt.

    Attributes:
        instance_prompt: names the subject; the only prompt that its images are trained with. Null where nothing is trained, or
            where each image set has one of its own.
        instance_prompts: of several subjects, by the names of their image sets; sets that are not named have instance_prompt.
        class_prompt: names the class; null for the prompts that class images were made with. With one prompt for all of
            them, as in the paper, it is the name alone that tells subject and class apart, and no other word of a prompt.
        clip_skip: layers left out at the end of the text encoder.
    """

    instance_prompt: Text | None
    instance_prompts: Table[Text, Text]
    class_prompt: Text | None
    clip_skip: ClipSkip


@dataclass(frozen=True, config=strict)
class TextualInversionConfig(TrainingConfig):
    """A training of a word (Gal et al. 2022, arXiv:2208.01618), alone or together with a LoRA (pivotal tuning).

    Attributes:
        rank: of the LoRA, with `tuned: lora`.
        placeholder_token: the word, one token for the tokenizer, such as <asuka>; null where nothing is trained.
        replaces: the words of prompts and captions in whose place it is read; null where they have the token itself.
        initializer: words whose vectors its own begin as, such as girl.
        templates: the texts that images are described by, in each {} for the word: "subject" and "style" are the paper's, of
            which each image takes one at random in each epoch; "captions" takes the data's own.
        embedding_learning_rate: of the word, where a LoRA is trained beside it; null for learning_rate.
        clip_skip: layers left out at the end of the text encoder.
    """

    rank: Count
    placeholder_token: Annotated[str, Field(pattern=r"^\S+$")] | None
    replaces: Text | None
    initializer: Text
    templates: Literal["subject", "style", "captions"] | tuple[Template, ...]
    embedding_learning_rate: Positive | None
    clip_skip: ClipSkip

    def __post_init__(self) -> None:
        """Refuse what trains no word, or one beside which nothing is left to be trained."""
        TrainingConfig.__post_init__(self)
        if self.tuned == "full":
            raise ValueError("tuned: given 'full': here it is embedding, or lora for a LoRA together with the word")
        if self.prior_loss_weight:
            raise ValueError(f"prior_loss_weight: given {self.prior_loss_weight:g}: a word has no class images: set it to 0")
        if not self.templates:
            raise ValueError("templates: given none: name some, or take subject, style or captions")
        if self.tuned == "embedding" and self.embedding_learning_rate is not None:
            raise ValueError("embedding_learning_rate: only with tuned=lora: else learning_rate is the word's")

    @property
    def of_weights(self) -> dict[str, Any]:
        """The settings that what is trained depends on; without those of a LoRA where there is none, and of class images."""
        of_lora = ("rank", "train_text_encoder", *AdapterConfig.__dataclass_fields__)
        unused = {"prior_loss_weight", *(of_lora if self.tuned == "embedding" else ())}
        return {name: value for name, value in super().of_weights.items() if name not in unused}


def check_vectors(vectors: int) -> None:
    """Refuse a number of vectors that no word has.

    Raises:
        ValueError: it is less than 1.
    """
    if vectors < 1:
        raise ValueError(f"--vectors: given {vectors}: must be at least 1")


def check_rank(rank: int) -> None:
    """Refuse a rank that no adapter has.

    Raises:
        ValueError: it is less than 1.
    """
    if rank < 1:
        raise ValueError(f"--rank: given {rank}: must be at least 1")


def check_seed(seed: int) -> None:
    """Refuse a seed that no sweep has.

    Raises:
        ValueError: it is negative.
    """
    if seed < 0:
        raise ValueError(f"--seed: given {seed}: must be at least 0")
