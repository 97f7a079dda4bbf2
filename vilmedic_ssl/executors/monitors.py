"""Numbers that tell, during training, what the embeddings are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

LOSSES = {
    "loss": "validation_loss",
    "validation_loss": "validation_loss",
    "training_loss": "training_loss",
}


@dataclass
class Seen:
    """A split through the encoder in eval mode.

    Attributes:
        encoder: (N, D) of the first view, before the projection.
        first, second: (N, P) of both views, after it; with one view they are the same.
        labels: (N,) int64, -1 = unlabelled, or (N, C) float32 in {0, 1, nan}; None without labels.
        patients: (N,) names; None = unknown.
        probe: (N, C) scores of the online probe on `encoder`; None without one.
        scores: (N, C) class probabilities that the model gives; None where it gives none.
        codes: (N, places) int64 of models that turn images into codes; codebook: how many there
            are.
        learnable: (C,) bool, classes that train shows, findings that it shows with and without;
            None = all.
    """

    encoder: np.ndarray
    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray | None = None
    patients: np.ndarray | None = None
    probe: np.ndarray | None = None
    scores: np.ndarray | None = None
    codes: np.ndarray | None = None
    codebook: int = 0
    learnable: np.ndarray | None = None

    def learnable_only(self, score_NC: np.ndarray) -> np.ndarray:
        """Scores, nan for what train does not show: no mean over classes or findings counts it."""
        return score_NC if self.learnable is None else np.where(self.learnable, score_NC, np.nan)


@dataclass(frozen=True)
class Metric:
    """A number from a split, its right direction, and what it needs."""

    score: Callable[[Seen], float]
    lower_is_better: bool = False
    pairs: bool = False
    labels: bool = False
    scores: bool = False
    codes: bool = False


def _knn(seen: Seen) -> float:
    """Accuracy of 20 cosine neighbours of other patients, weighted exp(s / 0.07)."""
    assert seen.labels is not None
    return metrics.knn_accuracy(seen.encoder, seen.labels, groups=seen.patients)


def _probe(seen: Seen) -> float:
    """Accuracy, or the mean AUROC over findings, of the online probe."""
    assert seen.labels is not None and seen.probe is not None
    if seen.labels.ndim == 1:
        return metrics.accuracy(seen.labels, seen.probe.argmax(1))
    return metrics.macro(
        metrics.columns(metrics.auroc, seen.labels, seen.learnable_only(seen.probe))
    )


def _decided(right: Callable[..., float], *, both: bool = False) -> Metric:
    """A metric of what the model's own scores decide: the likeliest class; or of each finding
    whether its probability is above 0.5, then the mean over findings.

    Args:
        both: findings that are always or never present, or in train, are left out of the mean.
    """

    def score(seen: Seen) -> float:
        assert seen.labels is not None and seen.scores is not None
        if seen.labels.ndim == 1:
            return right(seen.labels, seen.scores.argmax(1))
        hard_NC = (seen.scores > 0.5).astype(np.float64)
        value_C = metrics.columns(right, seen.labels, hard_NC)
        ranked_NC = seen.learnable_only(hard_NC)
        of_one_C = np.isnan(metrics.columns(metrics.auroc, seen.labels, ranked_NC))
        return metrics.macro(np.where(both & of_one_C, np.nan, value_C))

    return Metric(score, labels=True, scores=True)


def _auroc(seen: Seen) -> float:
    """Mean over findings, or over classes against the rest, of the AUROC of the model's scores;
    what train does not show is left out.
    """
    assert seen.labels is not None and seen.scores is not None
    hot = seen.labels
    if hot.ndim == 1:
        hot = metrics.one_hot(hot, seen.scores.shape[1])
    return metrics.macro(metrics.columns(metrics.auroc, hot, seen.learnable_only(seen.scores)))


def _found(name: str) -> Callable[[Seen], float]:
    return lambda seen: metrics.contrastive_accuracy(seen.first, seen.second)[name]


def _usage(seen: Seen) -> float:
    """Share of the codebook that the split uses."""
    assert seen.codes is not None
    return metrics.codebook_usage(seen.codes, seen.codebook)


def _perplexity(seen: Seen) -> float:
    assert seen.codes is not None
    return metrics.code_perplexity(seen.codes)


METRICS = {
    "knn": Metric(_knn, labels=True),
    "probe": Metric(_probe, labels=True),
    "accuracy": _decided(metrics.accuracy),
    "balanced_accuracy": _decided(metrics.balanced_accuracy, both=True),
    "auroc": Metric(_auroc, labels=True, scores=True),
    "top1": Metric(_found("between/top1"), pairs=True),
    "top5": Metric(_found("between/top5"), pairs=True),
    "mean_rank": Metric(_found("between/mean_rank"), lower_is_better=True, pairs=True),
    "all_top1": Metric(_found("all/top1"), pairs=True),
    "all_top5": Metric(_found("all/top5"), pairs=True),
    "all_mean_rank": Metric(_found("all/mean_rank"), lower_is_better=True, pairs=True),
    "effective_rank": Metric(lambda seen: metrics.effective_rank(seen.first)),
    "feature_std": Metric(lambda seen: metrics.feature_std(seen.first)),
    "alignment": Metric(
        lambda seen: metrics.alignment(seen.first, seen.second), lower_is_better=True, pairs=True
    ),
    "uniformity": Metric(lambda seen: metrics.uniformity(seen.first), lower_is_better=True),
    "codebook_usage": Metric(_usage, codes=True),
    "code_perplexity": Metric(_perplexity, codes=True),
}


def learnable_from(train: MedicalDataset) -> np.ndarray | None:
    """(C,) bool: the classes or findings that a training split shows, findings with and without;
    None where it has no labels.
    """
    if train.labels is None:
        return None
    return metrics.learnable(np.asarray(train.labels), len(train.label_names))


def check_metrics(names: list[str], chosen: str) -> bool:
    """Check the validator's metric names and the one training is steered by; True when lower is
    better.

    Raises:
        ConfigError: unknown metric, or one that is not computed.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"validator.metrics: there is no {name!r}; {closest(name, METRICS)}")
    if chosen in LOSSES:
        return True
    if chosen not in names:
        known = [*LOSSES, *names]
        raise ConfigError(
            f"trainor.early_stop_metric: {chosen!r} is not computed; {closest(chosen, known)}"
        )
    return METRICS[chosen].lower_is_better


def check_pairs(names: list[str], views: int) -> None:
    """Raises:
    ConfigError: a metric compares two views, and the method has one.
    """
    for name in names:
        if METRICS[name].pairs and views < 2:
            raise ConfigError(
                f"validator.metrics: {name} compares two views and this method has one; take it "
                "out, effective_rank and feature_std need no second"
            )


def check_scores(names: list[str], *, classifies: bool, encodes: bool) -> None:
    """Raises:
    ConfigError: a metric reads class scores, or codes, and the model gives none.
    """
    for name in names:
        if METRICS[name].codes and not encodes:
            raise ConfigError(
                f"validator.metrics: {name} counts the codes of images, and this model makes none; "
                "take it out, VAE and DALLE make them"
            )
        if METRICS[name].scores and not classifies:
            raise ConfigError(
                f"validator.metrics: {name} reads the model's own class scores, and this one gives "
                "none; take it out, probe and knn judge its features by the labels"
            )
