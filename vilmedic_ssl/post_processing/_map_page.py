"""The page of a split: the images each class is said of most surely, beside maps of why."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vilmedic_ssl.post_processing._heat import Block, Strip, coloured, masked, page
from vilmedic_ssl.post_processing._maps import Explained, Mapper, Shown
from vilmedic_ssl.post_processing._scores import own_scores
from vilmedic_ssl.post_processing._shared import Features, labels_of


def probabilities(features: Features, split: str, network: Explained) -> np.ndarray:
    """(N, C): of each class, or of each finding by itself."""
    part = features.get(split)
    if network.head is None:
        return own_scores(part, "maps")
    weight, bias = network.head
    logits = F.linear(torch.from_numpy(part.rows["encoder"]), weight, bias)
    one = labels_of(part, "maps").ndim == 1
    return (logits.softmax(1) if one else logits.sigmoid()).numpy()


def surest(labels: np.ndarray, score_NC: np.ndarray, c: int, n: int) -> tuple[list[int], list[int]]:
    """The n images most surely said to be `c` that are, and the n that are not."""
    if labels.ndim == 1:
        said_N, known_N, is_N = score_NC.argmax(1) == c, labels >= 0, labels == c
    else:
        said_N, known_N, is_N = score_NC[:, c] >= 0.5, ~np.isnan(labels[:, c]), labels[:, c] == 1
    order = np.argsort(-score_NC[:, c], kind="stable")
    right = [int(i) for i in order if said_N[i] and is_N[i]]
    wrong = [int(i) for i in order if said_N[i] and known_N[i] and not is_N[i]]
    return right[:n], wrong[:n]


def draw(
    features: Features,
    split: str,
    networks: Sequence[Explained],
    mapper: Mapper,
    shown: Shown,
    path: Path,
) -> str:
    """Write the page of a split; returns its caption, "" where there is nothing to show."""
    names, labels = features.get(split).label_names, labels_of(features.get(split), "maps")
    score_NC, each = probabilities(features, split, networks[0]), shown.of == "each"

    def strip(i: int, c: int) -> Strip:
        return _strip(features, split, networks, mapper, shown, i, c, float(score_NC[i, c]))

    of_class: list[str] = []
    right: list[Strip | None] = []
    wrong: list[Strip | None] = []
    for c in [names.index(name) for name in shown.classes or names]:
        for hit, miss in zip_longest(*surest(labels, score_NC, c, shown.n)):
            of_class.append(names[c])
            right.append(None if hit is None else strip(hit, c))
            wrong.append(None if miss is None else strip(miss, c))
    columns = ["image", *names] if each else ["image", "trained", "untrained"]
    blocks: list[Block] = []
    for title, strips in (("said, and true", right), ("said, but wrong", wrong)):
        lines = list(zip(of_class, strips, strict=True))
        lines = [line for line in lines if line[1] or not each]
        if any(strips):
            beside = [label for label, _ in lines] if each or not blocks else []
            blocks.append(Block(title, columns, [line for _, line in lines], beside))
    if not blocks:
        return ""
    page(blocks, path, beside=not each)
    outlined = any(s and s.outline is not None for s in right + wrong)
    return _caption(shown.of, networks[0].head is None, outlined)


def _strip(
    features: Features,
    split: str,
    networks: Sequence[Explained],
    mapper: Mapper,
    shown: Shown,
    i: int,
    c: int,
    score: float,
) -> Strip:
    """The line of image `i`, of which the model says class `c` with probability `score`."""
    part, data = features.get(split), features.dataset(split)
    names, labels = part.label_names, labels_of(part, "maps")
    if labels.ndim == 1:
        true = [int(labels[i])] * bool(labels[i] >= 0)
    else:
        true = np.flatnonzero(labels[i] == 1).tolist()
    truth = [names[k] for k in true]
    picture, image = features.images(split, [i])[0], features.inputs(split, [i])
    if shown.of == "each":
        repeated = image.expand(len(names), -1, -1, -1)
        maps = list(networks[0].maps(mapper, repeated, range(len(names))))
    else:
        k = true[0] if shown.of == "true" and true else c
        maps = [network.maps(mapper, image, [k])[0] for network in networks]
    outlines = [m for name in truth if (m := data.mask(i, name)) is not None]
    inside = torch.stack(outlines).any(0).numpy() if outlines else None
    caption = f"p = {score:.2f}"
    if c not in true:
        caption += f", is {' and '.join(truth)}" if truth else ", has none of them"
    overlaid = masked if shown.overlay == "mask" else coloured
    return Strip(caption, [picture, *(overlaid(picture, m) for m in maps)], inside)


def _caption(of: str, own: bool, outlined: bool) -> str:
    whose = "the model's own classifier" if own else "a linear probe"
    what = {"predicted": "the class it says", "true": "the true class", "each": "each class"}[of]
    line = "; blue: outline of the true finding" if outlined else ""
    return (
        f"what speaks for {what} by {whose}, brightest where most does, in the images each "
        f"class is said of most surely, with its probability{line}"
    )
