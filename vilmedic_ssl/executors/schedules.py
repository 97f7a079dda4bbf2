"""Learning-rate schedules and early stopping as pure functions: resume needs a step and the
scores, a plot no training.

Each schedule takes a `Clock` and returns the factor on the base learning rate; its keyword-only
parameters are the keys of `trainor.lr_decay_params`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest


@dataclass(frozen=True)
class Clock:
    """Where training stands.

    Attributes:
        step: optimizer steps done; total: steps planned.
        steps_per_epoch: of the training split.
        base_lr: learning rate of the first parameter group.
        scores: one value per evaluation so far that counts for the decay, oldest first.
        lower: True when lower scores are better.
    """

    step: int
    total: int
    steps_per_epoch: int
    base_lr: float
    scores: Sequence[float] = ()
    lower: bool = True

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // max(1, self.steps_per_epoch)


def cosine_between(start: float, end: float, step: int, total: int) -> float:
    """`start` at step 0, `end` from step `total` on, half a cosine in between."""
    share = min(1.0, step / max(1, total))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def constant(clock: Clock) -> float:
    """The base rate throughout."""
    return 1.0


def warmup_cosine(
    clock: Clock,
    *,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
    floor: float = 0.0,
    from_zero: bool = False,
) -> float:
    """Linear from 0 during the warm-up, then half a cosine down to `floor` (a factor) at the last
    step.

    Args:
        warmup_epochs: length of the warm-up in epochs.
        warmup_steps: its length in steps instead; null = by epochs.
        floor: share of the base rate left at the end.
        from_zero: the first step has rate 0 and the one after the warm-up the base rate, as in the
            code of SimCLR, BYOL and Barlow Twins; false = both one step earlier.

    Raises:
        ConfigError: a warm-up below 0, or a floor outside [0, 1].
    """
    for key, length in (("warmup_epochs", warmup_epochs), ("warmup_steps", warmup_steps or 0)):
        if not 0 <= length < math.inf:
            raise ConfigError(f"trainor.lr_decay_params.{key}: {length}; write 0 or more")
    if not 0 <= floor <= 1:
        raise ConfigError(
            f"trainor.lr_decay_params.floor: {floor}; write a share of the base rate in [0, 1]"
        )
    warmup = (
        warmup_steps if warmup_steps is not None else round(warmup_epochs * clock.steps_per_epoch)
    )
    if clock.step < warmup:
        return (clock.step if from_zero else clock.step + 1) / warmup
    return cosine_between(1.0, floor, clock.step - warmup, clock.total - warmup)


def linear_warmup_cosine(
    clock: Clock,
    *,
    warmup_epochs: int,
    max_epochs: int,
    warmup_start_lr: float = 0.0,
    eta_min: float = 0.0,
) -> float:
    """LinearWarmupCosineAnnealingLR of Lightning Bolts, counted in optimizer steps as ViLMedic
    counts it, whatever the keys are called; from `max_epochs` on the rate stays at `eta_min`.

    Args:
        warmup_epochs: steps of the linear warm-up; the last of them has the base rate.
        max_epochs: step at which the cosine ends.
        warmup_start_lr: rate of the first step.
        eta_min: rate at the end.
    """
    if not 0 <= warmup_epochs < max_epochs:
        raise ConfigError(
            f"trainor.lr_decay_params.max_epochs: {max_epochs}; write more than warmup_epochs "
            f"({warmup_epochs}), both in steps"
        )
    if clock.step < warmup_epochs:
        share = clock.step / (warmup_epochs - 1) if warmup_epochs > 1 else 0.0
        return (warmup_start_lr + share * (clock.base_lr - warmup_start_lr)) / clock.base_lr
    done, length = clock.step - warmup_epochs, max_epochs - warmup_epochs
    return cosine_between(clock.base_lr, eta_min, done, length) / clock.base_lr


def multiplicative(clock: Clock, *, gamma: float = 0.95) -> float:
    """Times `gamma` after every epoch.

    Args:
        gamma: factor per epoch.
    """
    return gamma**clock.epoch


def step(clock: Clock, *, step_size: int = 30, gamma: float = 0.1) -> float:
    """Times `gamma` every `step_size` epochs.

    Args:
        step_size: epochs between two drops.
        gamma: factor per drop.
    """
    if step_size < 1:
        raise ConfigError(f"trainor.lr_decay_params.step_size: {step_size}; write 1 or more")
    return gamma ** (clock.epoch // step_size)


def multistep(clock: Clock, *, milestones: list[int], gamma: float = 0.1) -> float:
    """Times `gamma` after each of the epochs in `milestones`.

    Args:
        milestones: epochs after which the rate drops, for example [60, 80].
        gamma: factor per drop.
    """
    if not milestones or min(milestones) < 1:
        raise ConfigError(
            f"trainor.lr_decay_params.milestones: {milestones}; list epochs from 1, for example "
            "[60, 80]"
        )
    return gamma ** sum(epoch <= clock.epoch for epoch in milestones)


def exponential(clock: Clock, *, end: float) -> float:
    """From the base rate to `end` times it at the last step, evenly on a logarithmic scale.

    Args:
        end: share of the base rate at the last step, above 0; above 1 the rate rises.
    """
    if not 0 < end < math.inf:
        raise ConfigError(f"trainor.lr_decay_params.end: {end}; write a number above 0")
    return end ** (clock.step / max(1, clock.total - 1))


def plateau(
    clock: Clock,
    *,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
) -> float:
    """Times `factor` when the score has not improved for more than `patience` evaluations.

    The arithmetic of torch.optim.lr_scheduler.ReduceLROnPlateau, folded over all scores so far.

    Args:
        factor: what the rate is multiplied by.
        patience: evaluations without improvement that are tolerated.
        threshold: smallest change of the score that counts as improvement.
        threshold_mode: rel = a share of the best score, abs = in the score's own unit.
        cooldown: evaluations after a drop that are not counted.
        min_lr: the rate never falls below it.
        eps: drops smaller than this are not made.
    """
    best = math.inf if clock.lower else -math.inf
    bad, wait, rate = 0, 0, clock.base_lr
    for score in clock.scores:
        sign = -1 if clock.lower else 1
        margin = (
            threshold * abs(best) if threshold_mode == "rel" and math.isfinite(best) else threshold
        )
        if sign * score > sign * best + (margin if math.isfinite(best) else 0):
            best, bad = score, 0
        else:
            bad += 1
        if wait > 0:
            wait, bad = wait - 1, 0
        if bad > patience:
            lowered = max(rate * factor, min_lr)
            rate = lowered if rate - lowered > eps else rate
            bad, wait = 0, cooldown
    return rate / clock.base_lr


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "warmup_cosine": warmup_cosine,
    "LinearWarmupCosineAnnealingLR": linear_warmup_cosine,
    "multiplicative": multiplicative,
    "ExponentialLR": multiplicative,
    "exponential": exponential,
    "step": step,
    "StepLR": step,
    "multistep": multistep,
    "MultiStepLR": multistep,
    "plateau": plateau,
    "ReduceLROnPlateau": plateau,
}


def find_schedule(name: str) -> Callable[..., float]:
    """The schedule called `name`, in our spelling or torch's.

    Raises:
        ConfigError: unknown name.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"trainor.lr_decay: there is no {name!r}; {closest(name, SCHEDULES)}")
    return SCHEDULES[name]


def improves(score: float, best: float | None, lower: bool) -> bool:
    """True when a score is strictly better than the best before it; NaN never is."""
    if math.isnan(score):
        return False
    return best is None or (score < best if lower else score > best)


def best_of(scores: Sequence[float], lower: bool) -> float | None:
    """The best score so far, None before the first."""
    known = [score for score in scores if not math.isnan(score)]
    return (min if lower else max)(known) if known else None


def stale(scores: Sequence[float], lower: bool) -> int:
    """Consecutive evaluations at the end without strict improvement."""
    best, count = None, 0
    for score in scores:
        if improves(score, best, lower):
            best, count = score, 0
        else:
            count += 1
    return count
