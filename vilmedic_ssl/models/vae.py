"""VAE: an image as a grid of codes out of a codebook, and drawn again from them (Ramesh et al.
2021, section 2.1).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.losses.discrete import drawing_error
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.dalle_package import package_vae
from vilmedic_ssl.nets.dvae import (
    DiscreteVAE,
    VAEShape,
    gumbel,
    kl_to_uniform,
    softened,
    temperature_at,
)
from vilmedic_ssl.registry import proto

Implementation = Literal["native", "dalle_pytorch"]


@proto
class VAE(PretrainingModel):
    """Encoder, Gumbel-softmax over the codebook, decoder, squared error.

    In training the codes are soft and noisy, by the seed of each image; in evaluation each is the
    likeliest one, so a validation loss is that of the codes DALLE will see, and the same each time.
    `chance` is the loss of drawing each image in its own mean colour. Images are not normalised
    outside.

    Attributes:
        image_size: side of the images, pixels; a power of two.
        num_layers: halvings of the side: 256 pixels and 3 layers make 32 x 32 codes.
        num_tokens: entries of the codebook.
        codebook_dim: width of an entry.
        hidden_dim: channels of the convolutions.
        num_resnet_blocks: residual blocks on either side.
        channels: of the images, 1 or 3; grey ones are repeated for 3.
        temperature: of the Gumbel-softmax at the first step.
        temperature_end: what it does not fall below.
        anneal_rate: every 100 steps it falls by exp(-anneal_rate * step); 0 = never.
        straight_through: one code per place in training, too, with the gradient of the soft ones.
        reinmax: beside straight_through, with ReinMax's gradient.
        smooth_l1_loss: smooth L1 instead of squared error.
        kl_div_loss_weight: of the KL divergence of the codes from uniform ones.
        kl_reduction: image = summed over the places of an image, mean over images; batch = summed
            over the whole batch, as in dalle-pytorch, so that it grows with the batch.
        implementation: native, or dalle_pytorch, whose modules then hold the weights.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    views = 1
    takes = ("seeds",)
    judged = "vae."
    spreads = False
    pixels = True
    core = "vae."

    def __init__(
        self,
        *,
        image_size: int = 256,
        num_layers: int = 3,
        num_tokens: int = 8192,
        codebook_dim: int = 512,
        hidden_dim: int = 64,
        num_resnet_blocks: int = 1,
        channels: int = 3,
        temperature: float = 0.9,
        temperature_end: float = 0.5,
        anneal_rate: float = 1e-6,
        straight_through: bool = False,
        reinmax: bool = False,
        smooth_l1_loss: bool = False,
        kl_div_loss_weight: float = 0.0,
        kl_reduction: Literal["image", "batch"] = "image",
        implementation: Implementation = "native",
        forward_batch_size: int | None = None,
    ):
        super().__init__()
        for name, value in (("temperature", temperature), ("temperature_end", temperature_end)):
            if not value > 0:
                raise ConfigError(f"model.{name}: {value}; write a number above 0")
        if temperature < temperature_end:
            raise ConfigError(
                f"model.temperature: {temperature} is below temperature_end, {temperature_end}; "
                "write a smaller end"
            )
        if reinmax and not straight_through:
            raise ConfigError("model.reinmax: needs straight_through=true; write both, or neither")
        if channels not in (1, 3):
            raise ConfigError(f"model.channels: {channels}; write 1 or 3")
        if anneal_rate < 0 or kl_div_loss_weight < 0:
            raise ConfigError("model.anneal_rate, kl_div_loss_weight: write 0 or more")
        shape = VAEShape(
            image_size=image_size,
            num_layers=num_layers,
            num_tokens=num_tokens,
            codebook_dim=codebook_dim,
            hidden_dim=hidden_dim,
            num_resnet_blocks=num_resnet_blocks,
            channels=channels,
        )
        self.vae: Any = vae_of(shape, implementation)
        self.schedule = temperature, temperature_end, anneal_rate
        self.temperature = temperature
        self.straight_through, self.reinmax = straight_through, reinmax
        self.smooth_l1_loss, self.kl_div_loss_weight = smooth_l1_loss, kl_div_loss_weight
        self.kl_of_batch = kl_reduction == "batch" and kl_div_loss_weight > 0
        self.coupled = self.kl_of_batch  # a sum does not average over chunks
        self.forward_batch_size = forward_batch_size

    @property
    def codebook(self) -> int:
        """How many codes there are."""
        return int(self.vae.shape.num_tokens)

    def refuse_images(self, images: Tensor) -> None:
        fitted(images, self.vae.shape)

    def at_step(self, step: int, total: int) -> None:
        self.temperature = temperature_at(step, *self.schedule)

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Mean of the features (B, D), without gradient; the error of each image, its KL
        divergence, and the error of its mean colour, (B,) each.
        """
        image_BCHW = fitted(images[:, 0], self.vae.shape)
        map_BDhw = self.vae.features(image_BCHW)
        logits_BKhw = self.vae.encoder[-1](map_BDhw)
        if self.training:
            noise_BKhw = gumbel(logits_BKhw, taken["seeds"])
            keys = {"straight_through": self.straight_through, "reinmax": self.reinmax}
            drawn = self.vae.mixed(softened(logits_BKhw, noise_BKhw, self.temperature, **keys))
        else:
            drawn = self.vae.decode(logits_BKhw.argmax(1).flatten(1))
        target = self.vae.normalised(image_BCHW)
        mean = target.mean((2, 3), keepdim=True).expand_as(target)
        how = {"smooth_l1": self.smooth_l1_loss}
        error_B, mean_B = drawing_error(drawn, target, **how), drawing_error(mean, target, **how)
        kl_B = kl_to_uniform(logits_BKhw) if self.kl_div_loss_weight else torch.zeros_like(error_B)
        return map_BDhw.mean((2, 3)).detach(), error_B, kl_B, mean_B.detach()

    def score(self, *rows: Tensor) -> dict[str, Any]:
        _, error_B, kl_B, mean_B = rows
        loss, chance = dist.global_mean(error_B), float(dist.global_mean(mean_B.detach()))
        if not self.kl_div_loss_weight:
            return {"loss": loss, "chance": chance}
        kl = dist.total(kl_B.sum()) if self.kl_of_batch else dist.global_mean(kl_B)
        parts = {"reconstruction": float(loss.detach()), "kl": float(kl.detach())}
        return {"loss": loss + self.kl_div_loss_weight * kl, "chance": chance, **parts}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`encoder`: the mean of the features that the codes are made of; `visual`: that of the
        codes' vectors.
        """
        map_BDhw = self.vae.features(fitted(images, self.vae.shape))
        codes_BN = self.vae.encoder[-1](map_BDhw).argmax(1).flatten(1)
        return {"encoder": map_BDhw.mean((2, 3)), "visual": self.vae.codebook(codes_BN).mean(1)}

    def codes(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the number of each place's code, row by row, (B, N) int64."""
        return codes_of(self.vae, images)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The images (B, C, H, W), and what is drawn from their codes, by caption."""
        drawn = pictures(self.vae, self.codes(images))
        return {"image": images, "drawn from its codes": drawn}


def vae_of(shape: VAEShape, implementation: Implementation) -> nn.Module:
    return DiscreteVAE(shape) if implementation == "native" else package_vae(shape)


def codes_of(vae: Any, images_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, N) int64, the same whatever precision holds around it."""
    with torch.autocast(images_BCHW.device.type, enabled=False):
        return vae.get_codebook_indices(fitted(images_BCHW, vae.shape))


def pictures(vae: Any, codes_BN: Tensor) -> Tensor:
    """What codes draw, (B, C, H, W) in [0, 1]."""
    return (vae.decode(codes_BN) * 0.5 + 0.5).clamp(0, 1)


def fitted(images_BCHW: Tensor, shape: VAEShape) -> Tensor:
    """With as many channels as the VAE takes.

    Raises:
        UserError: images of another size, normalised ones, or colour for a VAE of one channel.
    """
    channels, *size = images_BCHW.shape[1:]
    if size != [shape.image_size] * 2:
        raise UserError(
            f"images have {size[0]} x {size[1]} pixels, the VAE takes {shape.image_size} x "
            f"{shape.image_size}; set resize and crop of the dataset, or image_size of the VAE"
        )
    some = images_BCHW.numel() > 0  # a process may have no image left
    low, high = (float(x) for x in images_BCHW.detach().aminmax()) if some else (0, 1)
    if low < 0 or high > 1:
        raise UserError(
            f"the VAE takes values from 0 to 1 and got {low:.2f} to {high:.2f}; write mean: [0] "
            "and std: [1] in the dataset, or leave both out"
        )
    if channels not in (1, shape.channels):
        raise UserError(
            f"images have {channels} channels, the VAE takes {shape.channels}; write channels: "
            "gray in the dataset, or train a VAE with channels=3"
        )
    return images_BCHW.expand(-1, shape.channels, -1, -1)
