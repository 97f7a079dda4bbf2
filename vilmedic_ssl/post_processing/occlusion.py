"""Where in images the evidence for a class lies, by covering one place after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@proto
def occlusion(
    features: Features,
    out: Path,
    *,
    size: int = 16,
    stride: int = 8,
    n: int = 1,
    classes: list[str] | None = None,
    splits: list[str] | None = None,
    by: Literal["auto", "classifier", "linear_probe"] = "auto",
    of: Literal["predicted", "true", "each"] = "predicted",
    overlay: Literal["colour", "mask"] = "colour",
    measured: int = 0,
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """How far the score of a class drops when a grey square covers a place (Zeiler and Fergus
    2014), for the same images and beside the same network untrained as in `grad_cam`.

    It needs no gradient and no layer, and one pass of the network for each place of the square. A
    map shows the drop, divided by its maximum; where the score rises it is 0.

    File: `occlusion_<tag>_<split>.png`.

    Args:
        size: side of the square, pixels of what the network sees.
        stride: pixels from one place of it to the next, at most its size.
        n: images per class, right and wrong ones each; 0 = no picture.
        classes: those to show; null = all.
        splits: null = those of ensemblor.splits without train.
        by: whose logit: the model's own (classifier), that of a linear probe on the features of its
            encoder (linear_probe), or the first where there is one (auto).
        of: which class the maps are of: predicted, true, or each one of the trained network.
        overlay: colour = the map over the image; mask = the image seen through the map.
        measured: findings with an outline that are measured at most, chosen at random; 0 = none.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        with `measured` the numbers of `grad_cam`.

    Raises:
        UserError: no labels, no such class, or no classifier where one is asked for.
    """
    from vilmedic_ssl.nets import saliency
    from vilmedic_ssl.post_processing._maps import Shown, plugin

    if not 1 <= stride <= size:
        raise ConfigError(
            f"occlusion: size {size} and stride {stride}; write a stride from 1 to the size"
        )
    yield from plugin(
        features,
        out,
        "occlusion",
        lambda model, score, images: saliency.normalised(
            saliency.occlusion(score, images, size=size, stride=stride)
        ),
        splits=splits,
        by=by,
        shown=Shown(n, classes, of, overlay),
        measured=measured,
        draws=draws,
    )
