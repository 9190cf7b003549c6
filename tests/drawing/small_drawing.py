"""What is drawn in the tests of drawing: two prompts and two seeds, in two steps."""

from stages.generate import GenerateConfig
from stages.pipeline.config import RuntimeConfig
from tests.runtime import CPU

CONFIG = GenerateConfig(
    subject_prompts=("a cat",),
    other_prompts=("hat, green",),
    negative_prompt="",
    seeds=(3, 1),
    noise_scheduler="ddim",
    num_inference_steps=2,
    guidance_scale=2.0,
    resolution=32,
    batch_size=2,
    clip_skip=0,
    prompt_syntax="plain",
)
RUNTIME = RuntimeConfig(**CPU)
