"""The parts of a masked autoencoder (MAE, He et al. 2022): patches, masks, the encoder on visible
patches, the light decoder.

Shapes: B = images, N = patches of one, K = visible ones, M = masked ones, D = width of a token, P =
pixel values in a patch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


def to_patches(images_BCHW: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) -> (B, N, P), patches row by row; H and W are multiples of `size`."""
    b, c, h, w = images_BCHW.shape
    x = images_BCHW.reshape(b, c, h // size[0], size[0], w // size[1], size[1])
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size[0] * size[1] * c)


def from_patches(patches_BNP: Tensor, size: Size, grid: Size) -> Tensor:
    """The inverse of `to_patches`: (B, N, P) -> (B, C, H, W), of `grid` patches down and across."""
    x = patches_BNP.unflatten(1, grid).unflatten(-1, (*size, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def pick(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Of each image the tokens that `index_BK` int64 names: (B, K, D)."""
    return x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[-1]))


def shuffled(seeds_B: Tensor, n: int) -> Tensor:
    """A random order of 0 ... n - 1 per image, (B, n) int64, from its seed (int64) alone.

    Whatever the device, the batch it stands in and the number of processes, equal seeds give equal
    orders: positions are sorted by SplitMix64 (Steele, Lea and Flood 2014) of (seed, position), on
    whole numbers.
    """
    counter = torch.arange(1, n + 1, device=seeds_B.device)
    z = seeds_B[:, None] + counter * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shifted(z, 31)).argsort(dim=1, stable=True)


def _signed(constant: int) -> int:
    """64 bits as the int64 with these bits."""
    return constant - 2**64 if constant >= 2**63 else constant


def _shifted(z: Tensor, by: int) -> Tensor:
    """Right shift of int64 as of unsigned numbers."""
    return (z >> by) & (2 ** (64 - by) - 1)


def sine_cosine(grid: Size, dim: int, device: torch.device | None = None) -> Tensor:
    """(N, dim) float32 fixed position embeddings: half of `dim` (a multiple of 4) for the row, half
    for the column, each half sines and half cosines (Vaswani et al. 2017, section 3.5).
    """
    omega = 10000.0 ** -(torch.arange(dim // 4, device=device) / (dim // 4))
    row, column = (torch.arange(n, device=device)[:, None] * omega for n in grid)
    row = row[:, None].expand(-1, grid[1], -1)
    column = column[None].expand(grid[0], -1, -1)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1).flatten(0, 1)


@torch.no_grad()
def fix_positions(net: Any) -> None:
    """Sine-cosine position embeddings, without gradient, in place of those of a timm vision
    transformer; 0 for class and register tokens. Its width is a multiple of 4.
    """
    position_ND = sine_cosine(net.patch_embed.grid_size, net.embed_dim)
    prefix = net.pos_embed.shape[1] - len(position_ND)
    net.pos_embed.copy_(F.pad(position_ND, (0, 0, prefix, 0))[None])
    net.pos_embed.requires_grad_(False)


def encode_visible(net: Any, images_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
    """Tokens of a timm vision transformer that sees some patches only.

    Returns:
        (B, T + K, D): the T class and register tokens, if the network has them, then the visible
        patches in the order of `visible_BK`.
    """
    x = net._pos_embed(net.patch_embed(images_BCHW))
    first = net.num_prefix_tokens
    x = torch.cat([x[:, :first], pick(x[:, first:], visible_BK)], dim=1)
    return net.fc_norm(net.norm(net.blocks(net.norm_pre(x))))  # one of the norms is the identity


class PatchDecoder(nn.Module):
    """From tokens of visible patches to the pixels of masked ones.

    Weights start as in the paper (appendix A.1): Xavier uniform, the mask token N(0, 0.02).

    Args:
        width: D of the encoder's tokens.  values: P.
        dim, depth, heads: of the decoder; `dim` is a multiple of 4 and of `heads`.
    """

    def __init__(self, width: int, values: int, *, dim: int, depth: int, heads: int):
        super().__init__()
        from timm.models.vision_transformer import Block

        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, values)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens_BTD: Tensor, visible_BK: Tensor, masked_BM: Tensor, grid: Size
    ) -> Tensor:
        """(B, T + K, D) of `encode_visible` -> (B, M, P).

        Attention does not look at the order of tokens, so masked ones stand behind visible ones and
        nothing is brought back into place.
        """
        x = self.embed(tokens_BTD)
        position_ND = sine_cosine(grid, x.shape[-1], x.device)
        prefix, seen = x.tensor_split([x.shape[1] - visible_BK.shape[1]], dim=1)
        parts = [prefix, seen + position_ND[visible_BK], self.mask_token + position_ND[masked_BM]]
        x = self.norm(self.blocks(torch.cat([part.to(parts[1].dtype) for part in parts], dim=1)))
        return self.head(x[:, -masked_BM.shape[1] :])
