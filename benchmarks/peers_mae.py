"""MAE out of lightly's masked transformers, put together as in its documented example, with the
weights of a model of ours.
"""

import copy

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl.nets.masked import shuffled


class MAE(peers.Theirs):
    """`like_ours`: rows before columns in position embeddings."""

    def __init__(self, ours: nn.Module, like_ours: bool = False):
        nn.Module.__init__(self)
        net, theirs = copy.deepcopy(ours.cnn.net), ours.decoder
        kept, width = "skip" if like_ours else "sincos", theirs.embed.out_features
        kind = peers.modules.MaskedVisionTransformerTIMM
        self.encoder = kind(net, weight_initialization="skip", pos_embed_initialization=kept)
        patches, heads = net.patch_embed.num_patches, theirs.blocks[0].attn.num_heads
        depth = len(theirs.blocks)
        self.decoder = peers.modules.MaskedVisionTransformerDecoderTIMM(
            patches, width, depth, heads
        )
        with torch.no_grad():
            self.decoder.mask_token.copy_(theirs.mask_token)
        peers.filled(self.decoder.blocks, theirs.blocks)
        peers.filled(self.decoder.norm, theirs.norm)
        self.embed, self.head = copy.deepcopy(theirs.embed), copy.deepcopy(theirs.head)
        if like_ours:
            halves = self.decoder.pos_embed.data.chunk(2, dim=-1)
            self.decoder.pos_embed.data = torch.cat(halves[::-1], dim=-1)

    def loss(self, images: Tensor, seeds: Tensor | None = None, **batch: Tensor) -> Tensor:
        """Without `seeds` lightly draws the masks, with them they are ours."""
        images, length = images[:, 0], self.encoder.sequence_length
        keep, mask = peers.utils.random_token_mask((len(images), length), mask_ratio=0.75)
        if seeds is not None:
            order = 1 + shuffled(seeds, length - 1)
            keep = torch.cat([torch.zeros_like(order[:, :1]), order[:, : keep.shape[1] - 1]], 1)
            mask = order[:, keep.shape[1] - 1 :]
        tokens = self.embed(self.encoder.encode(images, idx_keep=keep))
        x = peers.utils.repeat_token(self.decoder.mask_token, (len(images), length))
        x = self.decoder(peers.utils.set_at_index(x, keep, tokens))
        drawn = self.head(peers.utils.get_at_index(x, mask))
        patches = peers.utils.patchify(images, self.encoder.vit.patch_embed.patch_size[0])
        target = peers.utils.normalize_mean_var(peers.utils.get_at_index(patches, mask - 1))
        return F.mse_loss(drawn, target)
