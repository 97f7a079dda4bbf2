"""What augmentation does nothing, or harm, to the data at hand, as far as that can be known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vilmedic_ssl.data.compose import named
from vilmedic_ssl.data.presets import Size, sides

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset

SIDE = re.compile(r"\b(?:left|right)\b", re.IGNORECASE)
FEW = 0.01  # share of reports that name a side up to which a flip is let be


def advise(items: list[Any], *, crop: Size, mode: str, reports: Sequence[str] | None) -> list[str]:
    """Sentences about a list of transforms, each naming one and what to write instead.

    Args:
        items: the list, as `preset` gives it or YAML holds it.
        crop: side of the view, pixels (or [height, width]).
        mode: "gray" or "rgb".
        reports: the texts that the images are paired with, if any.
    """
    found = list(named(items))
    told = []
    if mode == "gray" and (idle := _colours_only(found)):
        told.append(
            f"{', '.join(idle)}: no effect on grey images; leave it out of the list, or write "
            "channels: rgb if the images have colour"
        )
    side = min(sides(crop))
    for name, arguments in found:
        kernel = arguments.get("kernel_size") if name == "GaussianBlur" else None
        if kernel is not None and max(sides(kernel)) > side / 3:
            told.append(
                f"GaussianBlur's kernel of {max(sides(kernel))} is more than a third of the view's "
                f"{side} pixels; write kernel_size: {max(3, side // 10 | 1)}, a tenth"
            )
    sided = sum(SIDE.search(text) is not None for text in reports or ())
    if reports and sided > FEW * len(reports) and _flips(found):
        told.append(
            f"RandomHorizontalFlip: {sided:,} of {len(reports):,} reports name a side; flipped "
            "views contradict it and teach to ignore it: write a list without, as convirt is"
        )
    return told


def _colours_only(found: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What changes nothing but colours, in words."""
    words = [
        f"{key} of ColorJitter"
        for name, arguments in found
        for key in ("saturation", "hue")
        if name == "ColorJitter" and arguments.get(key)
    ]
    words += [name for name, _ in found if name in ("RandomGrayscale", "Grayscale")]
    return list(dict.fromkeys(words))


def _flips(found: list[tuple[str, dict[str, Any]]]) -> bool:
    return any(n == "RandomHorizontalFlip" and a.get("p", 0.5) > 0 for n, a in found)


def advise_on(dataset: MedicalDataset) -> list[str]:
    """`advise` on every list that training draws from, each sentence beginning with its keys."""
    from vilmedic_ssl.data.transforms import lists_of

    files = getattr(dataset, "files", None)
    if files is None:
        return []
    t = files.transform
    keys: dict[str, list[str]] = {}  # of each sentence
    for key, items in lists_of(t, "dataset.transform").items():
        if key != "evaluate":
            crop = t.local_crop if key == "local" else t.crop
            for sentence in advise(items, crop=crop, mode=files.mode, reports=dataset.reports):
                keys.setdefault(sentence, []).append(f"`{key}`")
    told = [f"views drawn by {', '.join(names)}: {text}" for text, names in keys.items()]
    if t.local_views and min(sides(t.local_crop)) >= min(sides(t.crop)):
        smaller = max(8, round(min(sides(t.crop)) * 3 / 56) * 8)  # 96 of 224, a multiple of 8
        told.append(
            f"local_crop of {t.local_crop} is not smaller than crop, {t.crop}; local views are "
            f"meant to show less: write local_crop: {smaller}"
        )
    return told
