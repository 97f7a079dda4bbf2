"""Where in images the evidence for a class lies, by Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@proto
def grad_cam(
    features: Features,
    out: Path,
    *,
    n: int = 1,
    classes: list[str] | None = None,
    splits: list[str] | None = None,
    by: Literal["auto", "classifier", "linear_probe"] = "auto",
    of: Literal["predicted", "true", "each"] = "predicted",
    layer: str | None = None,
    overlay: Literal["colour", "mask"] = "colour",
    measured: int = 1000,
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Grad-CAM (Selvaraju et al. 2017) of the trained network beside the same one untrained, for
    the images each class is said of most surely, rightly and wrongly.

    Where the data has outlines of findings (`masks`), also how much of the maps of true findings
    lies inside. Of several checkpoints the best one is explained.

    File: `grad_cam_<tag>_<split>.png`.

    Args:
        n: images per class, right and wrong ones each; 0 = no picture.
        classes: those to show; null = all.
        splits: null = those of ensemblor.splits without train.
        by: whose logit: the model's own (classifier), that of a linear probe on the features of its
            encoder (linear_probe), or the first where there is one (auto).
        of: which class the maps are of: predicted, true, or each one of the trained network.
        layer: part of the encoder: layer3, stages.2, blocks.5; null = the last. Maps behind earlier
            ones are finer and know less of classes.
        overlay: colour = the map over the image; mask = the image seen through the map.
        measured: findings with an outline that are measured at most, chosen at random; 0 = none.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        energy_inside (share of a map inside the finding), pointing_game (share of maps whose
        maximum is inside), chance (share of the area), and differences.

    Raises:
        UserError: no labels, no such layer or class, or no classifier where one is asked for.
    """
    from vilmedic_ssl.nets import saliency
    from vilmedic_ssl.post_processing._maps import Shown, plugin

    yield from plugin(
        features,
        out,
        "grad_cam",
        lambda model, score, images: saliency.grad_cam(model, score, images, layer=layer),
        splits=splits,
        by=by,
        shown=Shown(n, classes, of, overlay),
        measured=measured,
        draws=draws,
    )
