"""How many labels of the training split may be used: the `budget` section of a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilmedic_ssl.errors import ConfigError

SIZES = ("fraction", "samples", "samples_per_class", "ids")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Which labels of the training split are used; at most one of the first four keys, none = all.

    Patients stay whole, classes keep their shares, and of one seed every smaller `fraction` or
    `samples` lies inside every larger one, as does every smaller `samples_per_class`. Of data
    without labels it takes images, to pretrain on fewer: a `fraction` of all, so many `samples`, or
    those of `ids`.

    Attributes:
        fraction: share of the labelled images, above 0 and up to 1.
        samples: so many images at most.
        samples_per_class: so many images of each class (or finding, or none of them) at most.
        ids: text file with one sample id per line, as `select` writes it; blank lines and lines
            that begin with # do not count.
        keep: share that is left of a class, for example {PNEUMONIA: 0.1}, before anything else is
            chosen; what is not kept is not there, labelled or not.
        unlabelled: drop = leave the other images out; keep = train on them without their labels,
            for models that make use of such images. Scores never count them.
        seed: of the choice; null = the seed of the experiment.
    """

    fraction: float | None = None
    samples: int | None = None
    samples_per_class: int | None = None
    ids: str | None = None
    keep: dict[str, float] | None = None
    unlabelled: Literal["drop", "keep"] = "drop"
    seed: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"budget: {' and '.join(given)} exclude each other; keep one")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(
                f"budget.fraction: {self.fraction}; write a share above 0 and up to 1, 1 % as 0.01"
            )
        for name in ("samples", "samples_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"budget.{name}: {value}; write 1 or more")
        for name, share in (self.keep or {}).items():
            if not 0 < share <= 1:
                raise ConfigError(
                    f"budget.keep.{name}: {share}; write the share that is left, above 0 and up to "
                    "1, for example 0.1"
                )
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise ConfigError(
                f"budget.seed: {self.seed}; write a whole number from 0 to 2147483647"
            )

    @property
    def limited(self) -> bool:
        """True when it leaves labels out."""
        return any(getattr(self, name) is not None for name in SIZES)

    def seeded(self, seed: int) -> int:
        """The seed of the choice, in an experiment with this one."""
        return seed if self.seed is None else self.seed

    def words(self, seed: int) -> str:
        """What decides which labels are used, for example `fraction 0.01, seed 0`."""
        given = [name for name in (*SIZES, "keep") if getattr(self, name)]
        told = [f"{name} {getattr(self, name)}" for name in given] or ["all labels"]
        return ", ".join(told if self.ids else [*told, f"seed {self.seeded(seed)}"])
