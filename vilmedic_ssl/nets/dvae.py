"""The discrete VAE of DALL-E (Ramesh et al. 2021, section 2.1): an image as a grid of codes.

Parameters are named as in dalle-pytorch (`codebook.weight`, `encoder.0.0.weight`, ...), so that
weights go both ways.

B = images, C = channels, K = tokens of the codebook, D = width of one, h x w = places of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError


@dataclass(frozen=True)
class VAEShape:
    """What decides which weights a discrete VAE has; keys as in `DiscreteVAE`."""

    image_size: int
    num_layers: int
    num_tokens: int
    codebook_dim: int
    hidden_dim: int
    num_resnet_blocks: int
    channels: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (name != "num_resnet_blocks"):
                raise ConfigError(f"model.{name}: {value}; write a larger number")
        if self.image_size & (self.image_size - 1):
            raise ConfigError(
                f"model.image_size: {self.image_size}; write a power of two, for example 64 or 256"
            )
        if self.image_size < 2**self.num_layers:
            raise ConfigError(
                f"model.num_layers: {self.num_layers} halvings leave nothing of "
                f"{self.image_size} pixels; write {self.image_size.bit_length() - 1} or less"
            )

    @property
    def side(self) -> int:
        """Codes along one side of an image."""
        return self.image_size // 2**self.num_layers


class ResBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class DiscreteVAE(nn.Module):
    """Strided convolutions to the logits of tokens, and back from the codebook's vectors."""

    def __init__(self, shape: VAEShape):
        super().__init__()
        self.shape, width = shape, shape.hidden_dim
        self.codebook = nn.Embedding(shape.num_tokens, shape.codebook_dim)
        down, up = nn.Sequential(), nn.Sequential()
        blocks = shape.num_resnet_blocks
        first = width if blocks else shape.codebook_dim
        # Layers are made in the order of dalle-pytorch, so that a seed gives the same weights.
        for i in range(shape.num_layers):
            before = width if i else shape.channels
            down.append(nn.Sequential(nn.Conv2d(before, width, 4, 2, 1), nn.ReLU()))
            before = width if i else first
            up.append(nn.Sequential(nn.ConvTranspose2d(before, width, 4, 2, 1), nn.ReLU()))
        for _ in range(blocks):
            up.insert(0, ResBlock(width))
            down.append(ResBlock(width))
        if blocks:
            up.insert(0, nn.Conv2d(shape.codebook_dim, width, 1))
        down.append(nn.Conv2d(width, shape.num_tokens, 1))
        up.append(nn.Conv2d(width, shape.channels, 1))
        self.encoder, self.decoder = down, up

    def normalised(self, images_BCHW: Tensor) -> Tensor:
        """Values in [0, 1] -> [-1, 1], which is what the decoder draws."""
        return (images_BCHW - 0.5) / 0.5

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] -> logits of the tokens, (B, K, h, w)."""
        return self.encoder(self.normalised(images_BCHW))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the logits are made of, (B, hidden_dim, h, w)."""
        return self.encoder[:-1](self.normalised(images_BCHW))

    def mixed(self, weights_BKhw: Tensor) -> Tensor:
        """Shares of the tokens at each place -> images in [-1, 1] (or a little outside)."""
        return self.decoder(torch.einsum("bkhw,kd->bdhw", weights_BKhw, self.codebook.weight))

    @torch.no_grad()
    def get_codebook_indices(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] -> the likeliest token of each place, row by row, (B, h * w) int64."""
        return self.logits(images_BCHW).argmax(1).flatten(1)

    def decode(self, codes_BN: Tensor) -> Tensor:
        """(B, h * w) int64 -> images in [-1, 1] (or a little outside)."""
        side = math.isqrt(codes_BN.shape[1])
        return self.decoder(self.codebook(codes_BN).mT.unflatten(2, (side, side)))


def softened(
    logits_BKhw: Tensor,
    noise_BKhw: Tensor,
    temperature: float,
    *,
    straight_through: bool = False,
    reinmax: bool = False,
) -> Tensor:
    """Gumbel-softmax over the tokens (Jang et al. 2017), (B, K, h, w).

    Args:
        noise_BKhw: drawn from the standard Gumbel distribution.
        straight_through: one-hot forward, with the gradient of the soft shares.
        reinmax: with that of ReinMax instead (Liu et al. 2023, algorithm 2).
    """
    soft = ((logits_BKhw + noise_BKhw) / temperature).softmax(1)
    if not straight_through:
        return soft
    hard = one_hot(soft)
    if not reinmax:
        return hard - soft.detach() + soft
    plain = logits_BKhw.softmax(1)
    between = (hard + (logits_BKhw / temperature).softmax(1)) / 2
    target = between.clamp_min(1e-20).log()
    between = ((target - logits_BKhw).detach() + logits_BKhw).softmax(1)
    estimate = 2 * between - 0.5 * plain
    return estimate - estimate.detach() + hard


def one_hot(scores_BKhw: Tensor) -> Tensor:
    """1 at the largest of the tokens, 0 elsewhere, without gradient."""
    index_B1hw = scores_BKhw.argmax(1, keepdim=True)
    return torch.zeros_like(scores_BKhw).scatter_(1, index_B1hw, 1.0)


def gumbel(like_BKhw: Tensor, seeds_B: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `like_BKhw`; that of a sample follows from its seed
    (int64) alone.
    """
    noise = torch.empty_like(like_BKhw, memory_format=torch.contiguous_format)
    generator = torch.Generator(device=noise.device)
    for row, seed in zip(noise, seeds_B.tolist(), strict=True):
        row.exponential_(generator=generator.manual_seed(seed))
    return noise.log().neg()


def kl_to_uniform(logits_BKhw: Tensor) -> Tensor:
    """KL divergence of each place's tokens from the uniform distribution, summed over the places of
    an image, (B,), nats.
    """
    log_BKhw = F.log_softmax(logits_BKhw, 1)
    entropy_Bhw = -(log_BKhw.exp() * log_BKhw).sum(1)
    return (math.log(logits_BKhw.shape[1]) - entropy_Bhw).sum((1, 2))


def temperature_at(step: int, start: float, end: float, rate: float, every: int = 100) -> float:
    """The temperature after `step` optimizer steps: at step 100, 200, ... times exp(-rate * step),
    never below `end` (the schedule of dalle-pytorch's training script, and of ViLMedic).
    """
    times = step // every
    return max(end, start * math.exp(-rate * every * times * (times + 1) / 2))
