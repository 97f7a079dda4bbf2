"""MAE: a vision transformer sees a quarter of the patches, a light decoder draws the rest (He et
al. 2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.losses.exact import exact
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.masked import (
    PatchDecoder,
    Size,
    encode_visible,
    fix_positions,
    from_patches,
    pick,
    shuffled,
    to_patches,
)
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class MAE(PretrainingModel):
    """Encoder on visible patches, decoder for the pixels of masked ones, mean squared error.

    Which patches are masked follows from the seed of the sample alone. Images need not be square,
    only a whole number of patches high and wide. `chance` is the loss of drawing each masked
    patch in its own mean grey: near 1 with normalised pixels, less where patches are flat.

    Attributes:
        cnn: a vision transformer of timm.
        fixed_positions: sine-cosine position embeddings in the encoder, without gradient, as in the
            paper; false keeps the network's own, which pretrained weights need.
        mask_ratio: share of the patches that is masked, rounded to whole patches.
        decoder_dim: width of the decoder, a multiple of 4 and of decoder_heads.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        normalise_pixels: the target is each patch minus its mean, over its deviation.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    views = 1
    takes = ("seeds",)

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        fixed_positions: bool = False,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalise_pixels: bool = True,
        forward_batch_size: int | None = None,
    ):
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio: {mask_ratio}; write a share between 0 and 1")
        if min(decoder_dim, decoder_depth, decoder_heads) < 1:
            raise ConfigError("model.decoder_dim, decoder_depth, decoder_heads: write 1 or more")
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ConfigError(
                f"model.decoder_dim: {decoder_dim}; write a multiple of 4 and of decoder_heads, "
                f"{decoder_heads}"
            )
        _refuse_encoder(cnn)
        if fixed_positions and (cnn.net.pos_embed is None or cnn.net.embed_dim % 4):
            raise ConfigError(
                "model.fixed_positions: needs position embeddings and a width that is a multiple "
                "of 4; write false"
            )
        if fixed_positions:
            fix_positions(cnn.net)
        self.cnn, self.mask_ratio, self.normalise_pixels = cnn, mask_ratio, normalise_pixels
        self.size: Size = cnn.net.patch_embed.patch_size
        self.decoder = PatchDecoder(
            cnn.net.embed_dim,
            self.size[0] * self.size[1] * cnn.in_chans,
            dim=decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
        )
        self.forward_batch_size = forward_batch_size

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Mean of the visible tokens (B, D), without gradient; the error of each image (B,), and
        that of drawing each patch in its mean (B,).
        """
        images_BCHW = self._fitted(images[:, 0])
        visible_BK, masked_BM = self._split(images_BCHW, taken["seeds"])
        tokens = encode_visible(self.cnn.net, images_BCHW, visible_BK)
        drawn_BMP = self.decoder(tokens, visible_BK, masked_BM, self._grid(images_BCHW))
        target_BMP = pick(to_patches(images_BCHW, self.size), masked_BM)
        if self.normalise_pixels:
            mean, deviation = moments(target_BMP)
            target_BMP = (target_BMP - mean) / deviation
        flat_BMP = target_BMP.mean(-1, keepdim=True).expand_as(target_BMP)
        embedding_BD = tokens[:, self.cnn.net.num_prefix_tokens :].mean(1).detach()
        return embedding_BD, error(drawn_BMP, target_BMP), error(flat_BMP, target_BMP)

    def score(self, *rows: Tensor) -> dict[str, Any]:
        _, drawn_B, flat_B = rows
        return {"loss": dist.global_mean(drawn_B), "chance": float(dist.global_mean(flat_B))}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = self.cnn.vector(images)
        return {"encoder": features, "visual": features}

    def no_decay(self) -> set[str]:
        tokens = {f"cnn.net.{name}" for name in self.cnn.net.no_weight_decay()}
        tokens |= {"decoder.mask_token"}
        return {name for name, _ in self.named_parameters() if name in tokens}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """What the model makes of masked images.

        Args:
            images: (B, C, H, W), normalised as in training.  seeds: (B,) int64.

        Returns:
            Three (B, C, H, W) by their captions: the images; with 0 in masked patches; with the
            decoder's drawing in them, where the target is normalised with the true mean and
            deviation of each patch.
        """
        images_BCHW = self._fitted(images)
        grid, patches_BNP = self._grid(images_BCHW), to_patches(images_BCHW, self.size)
        visible_BK, masked_BM = self._split(images_BCHW, seeds)
        tokens = encode_visible(self.cnn.net, images_BCHW, visible_BK)
        drawn_BMP = self.decoder(tokens, visible_BK, masked_BM, grid).to(patches_BNP.dtype)
        if self.normalise_pixels:
            mean, deviation = moments(pick(patches_BNP, masked_BM))
            drawn_BMP = drawn_BMP * deviation + mean
        where = masked_BM[..., None].expand_as(drawn_BMP)
        masked = from_patches(patches_BNP.scatter(1, where, 0.0), self.size, grid)
        drawn = from_patches(patches_BNP.scatter(1, where, drawn_BMP), self.size, grid)
        if images.shape[1] == 1:
            masked, drawn = masked.mean(1, keepdim=True), drawn.mean(1, keepdim=True)
        return {"image": images, "what it sees": masked, "what it draws": drawn}

    def _split(self, images_BCHW: Tensor, seeds_B: Tensor) -> tuple[Tensor, Tensor]:
        """Visible (B, K) and masked (B, M) patches of each image, int64."""
        n = self._grid(images_BCHW)[0] * self._grid(images_BCHW)[1]
        masked = round(self.mask_ratio * n)
        if not 0 < masked < n:
            raise UserError(
                f"model.mask_ratio: {self.mask_ratio} of {n} patches leaves none masked or none "
                "visible; write another ratio, or make the patches smaller"
            )
        visible_BK, masked_BM = shuffled(seeds_B, n).split([n - masked, masked], dim=1)
        return visible_BK, masked_BM

    def _grid(self, images_BCHW: Tensor) -> Size:
        return images_BCHW.shape[2] // self.size[0], images_BCHW.shape[3] // self.size[1]

    def _fitted(self, images_BCHW: Tensor) -> Tensor:
        """With as many channels as the network takes.

        Raises:
            UserError: another size than it takes; colour for a network of one channel.
        """
        channels, height, width = images_BCHW.shape[1:]
        embed = self.cnn.net.patch_embed
        if height % self.size[0] or width % self.size[1]:
            raise UserError(
                f"images of {height} x {width} pixels are no whole number of patches of "
                f"{self.size[0]} x {self.size[1]}; set the crop of the dataset, or "
                "model.cnn.options.patch_size"
            )
        if embed.strict_img_size and (height, width) != tuple(embed.img_size):
            raise UserError(
                f"images have {height} x {width} pixels, model.cnn takes {embed.img_size[0]} x "
                f"{embed.img_size[1]}; set the crop of the dataset, or model.cnn.options.img_size"
            )
        if channels not in (1, self.cnn.in_chans):
            raise UserError(
                f"images have {channels} channels but model.cnn.in_chans is {self.cnn.in_chans}; "
                "write model.cnn.in_chans=3, or read the images as grey"
            )
        return images_BCHW.expand(-1, self.cnn.in_chans, -1, -1)


@exact
def error(drawn_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """(B,) mean squared error over the masked patches of each image."""
    return (drawn_BMP - target_BMP).square().mean((1, 2))


def moments(patches_BMP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, (B, M, 1): the unbiased variance plus 1e-6 (authors'
    code).
    """
    variance, mean = torch.var_mean(patches_BMP, dim=-1, keepdim=True, correction=1)
    return mean, (variance + 1e-6).sqrt()


def _refuse_encoder(cnn: VisualEncoder) -> None:
    """Raises:
    ConfigError: no vision transformer whose tokens are patches, or a part MAE would not train.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    net = cnn.net
    if not isinstance(net, VisionTransformer) or not isinstance(net.patch_embed, PatchEmbed):
        raise ConfigError(
            "model.cnn.backbone: MAE masks the patches of a plain vision transformer; write for "
            "example vit_small_patch16_224"
        )
    if cnn.output_layer == "classifier" or net.attn_pool is not None:
        raise ConfigError(
            "model.cnn: MAE does not train a classifier or an attention pooling behind the tokens; "
            "write output_layer: avgpool and options: {global_pool: avg}"
        )
    if cnn.dropout.p or cnn.permute != "batch_first":
        raise ConfigError(
            "model.cnn: MAE trains without the encoder's output, which dropout_out and permute "
            "change; leave both out"
        )
    if getattr(net.patch_drop, "prob", 0):
        raise ConfigError(
            "model.cnn.options.patch_drop_rate: MAE masks patches itself; leave it out and write "
            "model.mask_ratio"
        )
