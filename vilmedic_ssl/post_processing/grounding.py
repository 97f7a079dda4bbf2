"""Does a paired model look where a phrase's finding is?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@proto
def grounding(
    features: Features,
    out: Path,
    *,
    phrases: str | dict[str, str | None] = "{side} {finding}",
    of_report: bool = False,
    splits: list[str] | None = None,
    sigma: float = 0.1,
    tolerance: float = 0,
    left_is: Literal["right", "left"] = "right",
    lateral: list[str] = ("LATERAL", "LL", "LAT", "sagittal"),  # type: ignore[assignment]
    measured: int = 1000,
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Phrase grounding: the heat of a finding's phrase over its image against the outline that
    `masks` of the dataset has, and whether left and right in the phrase move it. Of several
    checkpoints the best one is asked.

    The heat is the cosine of each place with the phrase, smoothed, bilinear at the evaluation view.

    Args:
        phrases: for every finding, or for each that is not called "{side} {finding}", null leaving
            it out; {finding} is its name in lower case, {side} that of the outline (left, right;
            in Spanish izquierdo, derecho). A phrase with {side} is compared with the outlines of
            that side, one without with all.
        of_report: instead, the sentence of the image's own report that names the finding by
            `phrases` without its side, and does not deny it; findings without one are left out.
        splits: null = those of ensemblor.splits without train.
        sigma: of the Gaussian that smooths a map, as a share of its sides; 0.1 are 1.5 of 15
            places (BioViL); 0 = none.
        tolerance: pixels from an outline that the pointing game still counts as inside.
        left_is: half of the picture on which the patient's left is.
        lateral: values of the manifest's column view that show no left and right half; not in the
            side test.
        measured: findings measured at most, chosen at random.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        cnr (and signed_cnr, below 0 where a map spares the finding), miou of cosines above 0.1 to
        0.5, miou_scaled of maps from their minimum to their maximum, pointing_game, energy_inside
        (of the scaled map), chance (share of the area); the same of random_init, no_query (mean
        heat of the other findings' phrases) and other_place (outlines of other patients), and
        differences; side/right_way and more, see the page on grounding.

    Raises:
        UserError: the model reads no text, or there is no outline to compare with.
    """
    from vilmedic_ssl.console import say
    from vilmedic_ssl.errors import ConfigError
    from vilmedic_ssl.executors.pairs import reader_of
    from vilmedic_ssl.post_processing._ground import Keys, measure

    if measured < 1 or sigma < 0 or tolerance < 0:
        raise ConfigError(
            f"grounding: measured {measured}, sigma {sigma:g}, tolerance {tolerance:g}; write 1 or "
            "more, and 0 or more for the others"
        )
    if len(features.models) > 1:
        say(f"grounding: of {len(features.models)} checkpoints the best one is asked")
    features = features.of_best()
    readers = {
        "model": reader_of(features, "grounding"),
        "random_init": reader_of(features, "grounding", "random_init"),
    }
    keys = Keys(phrases, of_report, sigma, tolerance, left_is, lateral, measured, draws)
    chosen = splits or [split for split in features.splits if split != "train"] or features.splits
    for split in chosen:
        yield from measure(features, split, readers, keys)
