"""What paired models are trained by: the YAML keys of each loss, and what equal reports mean to it.

N = pairs of the global batch, n = those of this rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilmedic_ssl import dist, losses
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import proto

GROUPS = ("text", "study", "patient")  # columns of `groups`


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """What all of them share.

    Attributes:
        duplicates: what becomes of two pairs of a batch that are alike: ignore = each is a wrong
            answer to the other; mask = left out; positives = as right as the own one.
        alike: which pairs are: those of one text, one study, one patient.
    """

    duplicates: Literal["ignore", "mask", "positives"] = "ignore"
    alike: list[Literal["text", "study", "patient"]] = ("text", "study")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not self.alike:
            raise ConfigError(
                "model.loss.alike: []; name text, study or patient, or write "
                "model.loss.duplicates=ignore"
            )

    def parameters(self) -> dict[str, float]:
        """Starting values of what is learned."""
        return {}

    def __call__(
        self, linguistic: Tensor, visual: Tensor, groups: Tensor, **learned: Any
    ) -> Tensor:
        """(n, P) twice and (n, 3) -> the scalar loss of the global batch."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def matrices(self, groups_N3: Tensor) -> dict[str, Tensor | None]:
        """`positives` and `left_out` (n, N) bool for the loss, of (n, 3) int64 groups."""
        if self.duplicates == "ignore":
            return {"positives": None, "left_out": None}
        alike_NM = self._alike(groups_N3, dist.gather(groups_N3))
        if self.duplicates == "positives":
            return {"positives": alike_NM, "left_out": None}
        return {"positives": None, "left_out": alike_NM & ~_own(groups_N3, alike_NM.shape[1])}

    def reference(self, groups_N3: Tensor) -> dict[str, float]:
        """`chance`, the loss of a model that knows nothing, and `floor`, below which equal texts
        keep the loss of any model: two images of one text cannot be told apart by it.
        """
        found = self.references(groups_N3, dist.gather(groups_N3))
        return {name: float(dist.global_mean(value_N)) for name, value_N in found.items()}

    def references(self, groups_N3: Tensor, all_M3: Tensor) -> dict[str, Tensor]:
        """The same row by row, (n,) each, among any groups."""
        right_NM = _same(groups_N3, all_M3, [0])
        others_N = torch.zeros(len(groups_N3), device=all_M3.device)
        if self.duplicates != "ignore":
            alike_NM = self._alike(groups_N3, all_M3)
            right_NM, others_N = right_NM | alike_NM, alike_NM.sum(1).float() - 1
        left_out_N = others_N * (self.duplicates == "mask")
        chance_N = self._chance(len(all_M3) - left_out_N)
        floor_N = self._floor(right_NM.sum(1) - left_out_N)
        return {"chance": self.terms() * chance_N, "floor": self.terms() * floor_N}

    def _alike(self, groups_N3: Tensor, all_M3: Tensor) -> Tensor:
        return _same(groups_N3, all_M3, [GROUPS.index(name) for name in self.alike])

    def terms(self) -> float:
        """How many such cross entropies the loss adds up."""
        return 1.0

    def _chance(self, counted_N: Tensor) -> Tensor:
        return counted_N.log()

    def _floor(self, equal_N: Tensor) -> Tensor:
        return equal_N.log()


def _same(groups_N3: Tensor, all_M3: Tensor, columns: Sequence[int]) -> Tensor:
    """(n, M) bool: which pairs share a group."""
    return torch.stack([groups_N3[:, None, k] == all_M3[None, :, k] for k in columns]).any(0)


def _own(groups_N3: Tensor, width: int) -> Tensor:
    """(n, N) bool, true where a row of this rank meets itself."""
    n, device = len(groups_N3), groups_N3.device
    own_N = dist.first_row(n, device) + torch.arange(n, device=device)
    return own_N[:, None] == torch.arange(width, device=device)


def _above_zero(tau: float) -> None:
    if not tau > 0:
        raise ConfigError(f"model.loss.tau: {tau}; write a number above 0")


@proto
@dataclass(frozen=True, kw_only=True)
class ConVIRTLoss(PairLoss):
    """The cross entropies of ConVIRT (Zhang et al. 2022, eq. 2 to 4).

    Attributes:
        tau: temperature, > 0.
        lambda_: weight of image -> text in [0, 1]; text -> image has the rest.
        duplicates, alike: as in PairLoss.
    """

    tau: float = 0.1
    lambda_: float = 0.75

    def __post_init__(self) -> None:
        PairLoss.__post_init__(self)
        _above_zero(self.tau)
        if not 0 <= self.lambda_ <= 1:
            raise ConfigError(f"model.loss.lambda_: {self.lambda_}; write a share from 0 to 1")

    def __call__(
        self, linguistic: Tensor, visual: Tensor, groups: Tensor, **learned: Any
    ) -> Tensor:
        """(n, P) twice and (n, 3) -> the scalar loss of the global batch."""
        return losses.convirt(
            linguistic, visual, tau=self.tau, lambda_=self.lambda_, **self.matrices(groups)
        )


@proto
@dataclass(frozen=True, kw_only=True)
class InfoNCELoss(PairLoss):
    """The symmetric cross entropy of CLIP (Radford et al. 2021, figure 3).

    Attributes:
        tau: temperature, > 0; where it is learned, at the start.
        learnable: learn the temperature, kept at 0.01 or above.
        duplicates, alike: as in PairLoss.
    """

    tau: float = 0.07
    learnable: bool = True

    def __post_init__(self) -> None:
        PairLoss.__post_init__(self)
        _above_zero(self.tau)

    def parameters(self) -> dict[str, float]:
        """Starting values of what is learned."""
        return {"log_scale": -math.log(self.tau)} if self.learnable else {}

    def __call__(
        self, linguistic: Tensor, visual: Tensor, groups: Tensor, **learned: Any
    ) -> Tensor:
        """(n, P) twice and (n, 3) -> the scalar loss of the global batch."""
        scale = learned.get("log_scale")
        tau = self.tau if scale is None else (-scale.clamp_max(math.log(100))).exp()
        return losses.info_nce(linguistic, visual, tau=tau, **self.matrices(groups))


@proto
@dataclass(frozen=True, kw_only=True)
class SigmoidLoss(PairLoss):
    """Every image and text is a question of its own (SigLIP, Zhai et al. 2023, algorithm 1).

    Attributes:
        tau: temperature at the start, > 0.
        bias: added to every logit, at the start: most pairs are no pairs.
        learnable: learn both.
        duplicates, alike: as in PairLoss.
    """

    tau: float = 0.1
    bias: float = -10.0
    learnable: bool = True

    def __post_init__(self) -> None:
        PairLoss.__post_init__(self)
        _above_zero(self.tau)

    def parameters(self) -> dict[str, float]:
        """Starting values of what is learned."""
        return {"log_scale": -math.log(self.tau), "bias": self.bias} if self.learnable else {}

    def __call__(
        self, linguistic: Tensor, visual: Tensor, groups: Tensor, **learned: Any
    ) -> Tensor:
        """(n, P) twice and (n, 3) -> the scalar loss of the global batch."""
        log_tau = learned.get("log_scale", -math.log(self.tau))
        bias = learned.get("bias", self.bias)
        return losses.sigmoid(
            linguistic, visual, log_tau=log_tau, bias=bias, **self.matrices(groups)
        )

    def _chance(self, counted_N: Tensor) -> Tensor:
        """Of who answers every question with the share of pairs that are pairs."""
        return _questions(counted_N)

    def _floor(self, equal_N: Tensor) -> Tensor:
        """Of who knows all but which of the equal texts is whose."""
        told = self.duplicates == "positives"
        return torch.zeros_like(equal_N) if told else _questions(equal_N)


def _questions(asked_N: Tensor) -> Tensor:
    """Cross entropy of `asked` questions, one of them true, each answered by 1 / asked: summed."""
    return asked_N.log() - torch.special.xlog1py(asked_N - 1, -1 / asked_N)
