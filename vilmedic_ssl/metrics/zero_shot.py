"""From similarities of images and prompts to scores, without labels of any image."""

from __future__ import annotations

from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError

COLDEST, HOTTEST = 1e-3, 1e3  # temperatures tried; beyond them p no longer changes


def two_sided(present: Any, absent: Any, *, temperature: float = 1.0) -> np.ndarray:
    """Probability of a finding from the similarity to "X" and to "no X", arrays of any equal shape.

    exp(s+ / t) / (exp(s+ / t) + exp(s- / t)), float64 in [0, 1]. CheXzero (Tiu et al. 2022,
    Methods) takes cosines as they are, t = 1: p then stays between 0.12 and 0.88.

    Raises:
        UserError: unequal shapes, or a temperature not above 0.
    """
    present, absent = np.asarray(present, np.float64), np.asarray(absent, np.float64)
    if present.shape != absent.shape:
        raise UserError(f"two_sided: similarities {present.shape} and {absent.shape} must pair up")
    if not temperature > 0:
        raise UserError(f"temperature: {temperature}; write a number above 0")
    return _sigmoid((present - absent) / temperature)


def fit_temperature(y: Any, margin: Any) -> float:
    """The temperature at which sigmoid(margin / t) has the lowest cross entropy (Guo et al. 2017).

    Args:
        y: in {0, 1, nan}; nan (unknown) is left out.  margin: s+ - s-, of the same shape.

    Returns:
        a number in [0.001, 1000]; the upper end where margins say nothing, or the opposite.

    Raises:
        UserError: no label is known.
    """
    y, margin = np.asarray(y, np.float64).ravel(), np.asarray(margin, np.float64).ravel()
    known = ~np.isnan(y) & ~np.isnan(margin)
    if not known.any():
        raise UserError("temperature: no label is known, so none can be fitted")
    y, margin = y[known], margin[known]
    low, high = 1 / HOTTEST, 1 / COLDEST  # of 1 / t, in which the cross entropy is convex
    for _ in range(80):
        middle = np.sqrt(low * high)
        slope = ((_sigmoid(margin * middle) - y) * margin).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def standardise(score_NC: np.ndarray) -> np.ndarray:
    """Each class to mean 0 and standard deviation 1 (of the population) over the images, as
    GLoRIA's zero-shot classification does before its argmax (Huang et al. 2021; released code).

    Transductive: the score of an image depends on the other images. A constant class becomes 0.
    """
    std_C = score_NC.std(axis=0)
    return (score_NC - score_NC.mean(axis=0)) / np.where(std_C > 0, std_C, 1)


def right_side(y: Any, present: Any, absent: Any) -> tuple[float, float]:
    """Of the images with a finding the share nearer to "X" than to "no X", and of those without it
    the share nearer to "no X"; equal similarities count half.

    Their mean is the accuracy of choosing right: chance is 0.5, at any prevalence.

    Args:
        y, present, absent: (N,); y in {0, 1, nan}.

    Returns:
        two numbers in [0, 1]; nan where there is no such image.
    """
    y_N = np.asarray(y, np.float64)
    difference_N = np.asarray(present, np.float64) - np.asarray(absent, np.float64)
    chosen_N = (np.sign(difference_N) + 1) / 2
    said, denied = chosen_N[y_N == 1], 1 - chosen_N[y_N == 0]
    return (
        float(said.mean()) if len(said) else float("nan"),
        float(denied.mean()) if len(denied) else float("nan"),
    )


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Without overflow at either end."""
    return np.exp(-np.logaddexp(0, -x))
