"""The small UNet with its text encoder and tokenizer: their architecture, their training examples, and their loss."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stages.encoding.prompts import tokenize
from stages.mini.drawings.draw_sets import read_array
from stages.mini.drawings.pixels import to_tensor
from stages.mini.drawings.portraits import ATTRIBUTES, STYLES, caption
from stages.mini.training.fitting import generator_of
from stages.pipeline.outputs import atomic_file
from stages.pipeline.progress import track

WIDTH = 128
CHANNELS = (64, 128, 128)
TINY_WIDTH = 16
TINY_CHANNELS = (16, 32, 32)
VOCABULARY = 800
MAX_TOKENS = 77
MIN_SNR_GAMMA = 5.0
CAPTION_DROPOUT = 0.1
ATTRIBUTE_DROPOUT = 0.1
SHUFFLE = 0.3
CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CORPUS_PER_STYLE = 2000


class TextToImage(nn.Module):
    """The UNet and the text encoder as one module, so that one optimiser trains both."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder


@dataclass(frozen=True)
class Examples:
    """Latents (N, C, h, w), times scaling_factor, with the style and the attributes of each."""

    latents: Tensor
    styles: tuple[str, ...]
    attributes: tuple[dict[str, str], ...]


def build_unet(latent_channels: int, tiny: bool) -> UNet2DConditionModel:
    """Three levels, one layer each, attention on the upper two and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=TINY_CHANNELS if tiny else CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TINY_WIDTH if tiny else WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, tiny: bool) -> CLIPTextModel:
    """CLIP's text model, two layers."""
    width = TINY_WIDTH if tiny else WIDTH
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    text_encoder = CLIPTextModel(config)
    # Eager attention: the fused kernel is several times slower on CPUs at this size.
    text_encoder.set_attn_implementation("eager")
    return text_encoder


def build_tokenizer(corpus: Sequence[str]) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's own file layout; it can spell any text, known words in few tokens."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=letters)
    )
    return _clip_tokenizer(json.loads(bpe.to_str())["model"]["merges"], letters)


def caption_corpus() -> list[str]:
    """What the tokenizer learns from: captions of each style with words drawn at random, the same ones at every call."""
    rng = Random(0)
    corpus = []
    for style in STYLES.values():
        for _ in range(CORPUS_PER_STYLE):
            attributes = {}
            for name in style.attributes:
                attributes[name] = rng.choice(sorted(style.words.get(name) or ATTRIBUTES[name]))
            corpus.append(caption(style.caption, attributes))
    return [*corpus, "a portrait"]


def latents_path(work: Path, style: str) -> Path:
    """Where the latents of a style are kept: the name holds the VAE's digest, so that a new VAE does not find them."""
    digest = hashlib.sha256((work / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    return work / "latents" / f"{style}-{digest[:12]}.npy"


def cache_latents(work: Path, vae: AutoencoderKL, styles: Sequence[str]) -> None:
    """Encode the training drawings of these styles, unless that is done."""
    for style in styles:
        out = latents_path(work, style)
        if not out.exists():
            latents = _encode(work / "drawings" / f"train-{style}.npy", vae)
            with atomic_file(out) as part, part.open("wb") as file:
                np.save(file, latents)


def load_examples(work: Path, scaling_factor: float, styles: Sequence[str]) -> Examples:
    """The cached latents with the attributes of the drawings they come from."""
    latents, names, attributes = [], [], []
    for style in styles:
        latents.append(torch.from_numpy(np.load(latents_path(work, style))))
        found = read_array(work / "drawings" / f"train-{style}.npy")[1]
        attributes += found
        names += [style] * len(found)
    return Examples(torch.cat(latents) * scaling_factor, tuple(names), tuple(attributes))


def draw_captions(examples: Examples, chosen: Sequence[int], style_probability: float, rng: Random) -> list[str]:
    """Captions for the chosen examples, with dropout: some empty, some shuffled, some without a style or an attribute."""
    captions = []
    for index in chosen:
        name = STYLES[examples.styles[index]].caption if rng.random() < style_probability else None
        words = caption(name, examples.attributes[index], rng, ATTRIBUTE_DROPOUT, SHUFFLE)
        captions.append("" if rng.random() < CAPTION_DROPOUT else words)
    return captions


def build_noise_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def denoising_loss(
    model: TextToImage, noise_scheduler: DDPMScheduler, latents: Tensor, input_ids: Tensor, generator: torch.Generator
) -> Tensor:
    """Error of the predicted noise, weighted by min-SNR with gamma 5 (Hang et al. 2023, arXiv:2303.09556)."""
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator).to(device)
    timesteps = torch.randint(1000, (len(latents),), generator=generator).to(device)
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    noisy_latents = noisy_latents.contiguous(memory_format=torch.channels_last)
    encoder_hidden_states = model.text_encoder(input_ids.to(device))[0]
    model_pred = model.unet(noisy_latents, timesteps, encoder_hidden_states).sample
    snr = compute_snr(noise_scheduler, timesteps)
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr
    return (weights * (model_pred.float() - noise).square().mean(dim=(1, 2, 3))).mean()


def batch_loss(
    model: TextToImage, tokenizer: CLIPTokenizer, examples: Examples, step: int, batch_size: int, style_probability: float
) -> Tensor:
    """The loss of one step; batch and noise depend on the step's number alone, so that a resumed training repeats them."""
    generator = generator_of(2, step)
    chosen = torch.randint(len(examples.styles), (batch_size,), generator=generator)
    captions = draw_captions(examples, chosen.tolist(), style_probability, Random(generator.initial_seed()))
    latents = examples.latents[chosen].to(next(model.parameters()).device)
    return denoising_loss(model, build_noise_scheduler(), latents, tokenize(tokenizer, captions), generator)


def _clip_tokenizer(merges: Sequence[Sequence[str]], letters: Sequence[str]) -> CLIPTokenizer:
    pairs = [tuple(merge) for merge in merges]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), "utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


@torch.no_grad()
def _encode(drawings: Path, vae: AutoencoderKL) -> NDArray[np.float32]:
    images = read_array(drawings)[0]
    device = next(vae.parameters()).device
    batches = []
    for first in track(range(0, len(images), 64), f"encoding {drawings.stem}"):
        batches.append(vae.encode(to_tensor(images[first : first + 64]).to(device)).latent_dist.mean.cpu().numpy())
    return np.concatenate(batches)
