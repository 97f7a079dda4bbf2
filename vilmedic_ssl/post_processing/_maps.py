"""What `grad_cam` and `occlusion` share: whose logits are explained, split by split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import metrics
from vilmedic_ssl.console import progress, say
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.saliency import Score
from vilmedic_ssl.post_processing._scores import labelled_rows
from vilmedic_ssl.post_processing._shared import Features, Source, Value
from vilmedic_ssl.registry import closest

By = Literal["auto", "classifier", "linear_probe"]
CHUNK = 32  # images at a time


@dataclass(frozen=True)
class Shown:
    """The keys of a page of maps."""

    n: int
    classes: list[str] | None
    of: Literal["predicted", "true", "each"]
    overlay: Literal["colour", "mask"]


Mapper = Callable[[torch.nn.Module, Score, Tensor], Tensor]
"""(model, score, (B, C, H, W) images) -> (B, h, w) maps in [0, 1]."""


@dataclass(frozen=True)
class Explained:
    """A network and the logits that are explained.

    Attributes:
        model: in eval mode.
        head: weight (C, D) and bias (C,) of a linear probe on `encoder`; None = the model's own
            logits.
    """

    model: PretrainingModel
    head: tuple[Tensor, Tensor] | None

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """(B, C), with gradient where it is on."""
        out = self.model.encode(images_BCHW)
        if self.head is None:
            return out["visual"].float()
        weight, bias = (part.to(images_BCHW.device) for part in self.head)
        return F.linear(out["encoder"].float(), weight, bias)

    def maps(self, mapper: Mapper, images_BCHW: Tensor, classes: Sequence[int]) -> np.ndarray:
        """(B, h, w) maps of one class per image."""
        index_B1 = torch.tensor(classes, device=images_BCHW.device)[:, None]
        score: Score = lambda x: self.logits(x).gather(1, index_B1)[:, 0]  # noqa: E731
        return mapper(self.model, score, images_BCHW).float().cpu().numpy()


def explained(features: Features, source: Source, by: By) -> Explained:
    """The trained model (`model`) or the same network untrained (`random_init`).

    Raises:
        UserError: a classifier is asked for and there is none; a probe has nothing to learn from.
    """
    model = features.models[0] if source == "model" else features.untrained()
    if by_of(features, by) == "classifier":
        return Explained(model, None)
    if not features.has("train"):
        raise UserError("the data has no train split for a linear probe; add one")
    train = features.get("train", source)
    x, y = labelled_rows(train, "encoder", "linear_probe")
    weight, bias = metrics.linear_head(x, y, classes=len(train.label_names))
    return Explained(model, (torch.from_numpy(weight).float(), torch.from_numpy(bias).float()))


def by_of(features: Features, by: By) -> By:
    """What `auto` means: the model's own logits where it classifies, else those of a probe.

    Raises:
        UserError: a classifier is asked for and there is none.
    """
    split = "train" if features.has("train") else features.splits[0]
    has = "scores" in features.get(split).rows
    if by == "classifier" and not has:
        raise UserError("this model gives no class scores; write by: linear_probe, or by: auto")
    return by if by != "auto" else "classifier" if has else "linear_probe"


def plugin(
    features: Features,
    out: Path,
    name: str,
    mapper: Mapper,
    *,
    splits: Sequence[str] | None,
    by: By,
    shown: Shown,
    measured: int,
    draws: int,
) -> Iterator[tuple[str, Value]]:
    """Pictures and numbers of a way to make maps; the keys are described at `grad_cam`.

    Raises:
        UserError: no labels, nothing to explain, or a key out of range.
    """
    from vilmedic_ssl.post_processing._inside import measure
    from vilmedic_ssl.post_processing._map_page import draw

    for key, number in (("n", shown.n), ("measured", measured)):
        if number < 0:
            raise ConfigError(f"{name}.{key}: {number}; write 0 or more")
    if len(features.models) > 1:
        say(f"{name}: of {len(features.models)} checkpoints the best one is explained")
    features = features.of_best()
    networks = [explained(features, source, by) for source in ("model", "random_init")]
    chosen = splits or [split for split in features.splits if split != "train"] or features.splits
    for split in progress(chosen, desc=name, unit="split"):
        names = features.get(split).label_names
        for wanted in shown.classes or ():
            if wanted not in names:
                raise ConfigError(f"{name}.classes: no class {wanted!r}; {closest(wanted, names)}")
        path = out / f"{name}_{features.tag}_{split}.png"
        if shown.n and (caption := draw(features, split, networks, mapper, shown, path)):
            yield f"{name}, {split}: {caption}", path
        if measured:
            yield from measure(features, split, name, networks, mapper, most=measured, draws=draws)
