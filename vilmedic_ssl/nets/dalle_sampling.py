"""Drawing from DALL-E, token by token: codes of images, and the rest of a text.

B = sequences, T = text tokens, N = codes of an image, V, K = ids of texts and codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from its logits.

    Attributes:
        filter_thres: of all ids, this share is out of the question, the least likely; 1 = always
            the likeliest (Ramesh et al. 2021 and ViLMedic: 0.9).
        top_p: then the likeliest that together have this probability; 1 = all (Holtzman et al.
            2020).
        temperature: above 1 more varied, below 1 more of the likeliest.
        cond_scale: how strongly the text is followed: 1 = as it was learned; above, what the text
            changes is exaggerated (classifier-free guidance), for which training needs
            text_dropout.
    """

    filter_thres: float = 0.9
    top_p: float = 1.0
    temperature: float = 1.0
    cond_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.filter_thres <= 1:
            raise ConfigError(f"filter_thres: {self.filter_thres}; write a share from 0 to 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p}; write a probability above 0 and up to 1")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature: {self.temperature}; write a number above 0, or filter_thres: 1 for "
                "the likeliest"
            )

    def draw(self, logits_BK: Tensor, offset: int, ids: int) -> Tensor:
        """(B,) int64, one id for each row.

        Args:
            offset, ids: where these logits stand among those of all ids, for which dalle-pytorch
                draws its noise and counts its share; equal random states give equal draws.
        """
        keep = min(max(int((1 - self.filter_thres) * ids), 1), logits_BK.shape[1])
        noise_BK = torch.empty(len(logits_BK), ids, device=logits_BK.device).uniform_(0, 1)
        noise_BK = noise_BK[:, offset : offset + logits_BK.shape[1]]
        logits_BK = top_k(logits_BK.float(), keep) / self.temperature
        if self.top_p < 1:
            logits_BK = nucleus(logits_BK, self.top_p)
        return (logits_BK - _log(-_log(noise_BK))).argmax(1)


def top_k(logits_BK: Tensor, k: int) -> Tensor:
    """All but the k largest of each row set to -inf."""
    if k >= logits_BK.shape[1]:
        return logits_BK
    value, index = logits_BK.topk(k)
    return torch.full_like(logits_BK, -torch.inf).scatter_(1, index, value)


def nucleus(logits_BK: Tensor, p: float) -> Tensor:
    """All but the likeliest of each row that together reach the probability p set to -inf."""
    value, index = logits_BK.sort(descending=True)
    before = value.softmax(1).cumsum(1) - value.softmax(1)
    return torch.empty_like(value).scatter_(1, index, value.masked_fill(before >= p, -torch.inf))


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(1e-20).log()


@torch.no_grad()
def draw_codes(
    net: Any,
    text_BT: Tensor,
    how: Sampling,
    *,
    first_Bn: Tensor | None = None,
    use_cache: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """The codes of an image for each text, (B, N) int64.

    Args:
        net: a `Dalle`, or what stands in for one.
        text_BT: T tokens each, padding as 0.
        first_Bn: the first n codes, which are kept.
        use_cache: false reads everything anew for each code; the same but for rounding.
        tick: called after each code.
    """
    text_BT = net.padded(text_BT)
    batch, guided = len(text_BT), how.cond_scale != 1
    codes_BN = text_BT.new_empty(batch, net.image_seq_len)
    begin = 0 if first_Bn is None else first_Bn.shape[1]
    if first_Bn is not None:
        codes_BN[:, :begin] = first_Bn
    if guided:  # both at once: with its text, and with none
        text_BT = torch.cat([text_BT, net.padded(torch.zeros_like(text_BT))])
    twice = 1 + guided
    cache = net.cache(len(text_BT)) if use_cache else None
    for at in range(begin, net.image_seq_len):
        if cache is None:
            logits = net(text_BT, codes_BN[:, :at].repeat(twice, 1))[1][:, -1]
        else:
            if at == begin:
                x = net.embedded(text_BT, codes_BN[:, :at].repeat(twice, 1))
            else:
                x = net.embedded_codes(codes_BN[:, at - 1 : at].repeat(twice, 1), at - 1)
            logits = net.image_logits(net.grown(x, cache)[:, -1])
        if guided:
            with_text, without = logits.chunk(2)
            logits = without + (with_text - without) * how.cond_scale
        codes_BN[:, at] = how.draw(logits, net.text_ids, net.text_ids + net.image_ids)
        tick()
    return codes_BN


@torch.no_grad()
def draw_text(
    net: Any,
    begin_Bn: Tensor,
    how: Sampling,
    *,
    end: int | None = None,
    never: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """The rest of each text, (B, T) int64, padding as 0. What is drawn depends on the text before
    it alone, not on any image: in DALL-E the image comes last.

    Args:
        begin_Bn: the first n tokens, without padding, of equal number in all rows.
        end: the token that ends a text.  never: one that is not drawn, for "unknown".
    """
    batch, T = len(begin_Bn), net.text_seq_len
    text_BT = begin_Bn.new_zeros(batch, T)
    text_BT[:, : begin_Bn.shape[1]] = begin_Bn
    over_B = torch.zeros(batch, dtype=torch.bool, device=begin_Bn.device)
    cache = net.cache(batch)
    for at in range(begin_Bn.shape[1], T):
        if cache is None:
            logits = net(net.padded(text_BT))[0][:, at]
        else:
            x = net.embedded(net.padded(text_BT[:, :at]))
            logits = net.text_logits(net.grown(x[:, cache.at :], cache)[:, -1])
        logits[:, 0] = -torch.inf  # <bos>
        if never is not None:
            logits[:, never] = -torch.inf
        drawn_B = how.draw(logits, 0, net.text_ids + net.image_ids)
        over_B |= drawn_B >= net.first_pad  # padding says that the text is over
        text_BT[:, at] = drawn_B.masked_fill(over_B, 0)
        if end is not None:
            over_B |= drawn_B == end
        tick()
        if bool(over_B.all()):
            break
    return text_BT
