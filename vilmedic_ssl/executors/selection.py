"""Which images are worth a label next, by what trained models say of them; no label is read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.features import Features

How = Literal["entropy", "disagreement"]
CUT, NOISE = 0.1, 0.015  # share of a side; standard deviation, of pixels in [0, 1]


def worth(features: Features, split: str, how: How) -> np.ndarray:
    """(N,) float64, the higher the sooner a label is wanted: `entropy_of` the class scores, or
    `disagreement_of` six views.

    Raises:
        UserError: a score is not finite.
    """
    findings = getattr(features.models[0], "task", None) == "findings"
    noise = noise_scale(features, split)
    parts = []
    for batch in features.batches(split, how):
        views = [batch["images"]] if how == "entropy" else perturbed(*_of(batch), noise)
        outs = [features.embed(view) for view in views]
        if how == "disagreement":
            parts.append(disagreement_of(outs))
        else:
            parts.append(entropy_of(outs[0], findings=findings))
    scores = torch.cat(parts).double().numpy()
    if bad := int((~np.isfinite(scores)).sum()):
        raise UserError(
            f"--score {how}: {bad} of {len(scores)} scores are not finite; the model's outputs "
            "overflow, take another checkpoint with ckpt="
        )
    return scores


def _of(batch: dict[str, object]) -> tuple[Tensor, list[str]]:
    images, ids = batch["images"], batch["id"]
    assert isinstance(images, Tensor) and isinstance(ids, list)
    return images, ids


def noise_scale(features: Features, split: str) -> Tensor:
    """(C, 1, 1) what pixels in [0, 1] were divided by, so that noise is added on their scale."""
    files = getattr(features.dataset(split), "files", None)
    return torch.ones(1, 1, 1) if files is None else 1 / torch.as_tensor(files.pipeline.std)


def entropy_of(rows: dict[str, Tensor], *, findings: bool = False) -> Tensor:
    """(B,) float64 entropy, nats, of the class scores (B, C); of findings, the sum over them.

    Without class scores, that of softmax(z / |z|), z the projected features `visual`: how evenly
    an image spreads over the directions of the projection.
    """
    if "scores" not in rows:
        z_BD = rows["visual"].double().flatten(1)  # float32 would make equals of near ones
        return _entropy(F.normalize(z_BD, dim=1).softmax(1)).sum(1)
    p_BC = rows["scores"].double()
    return (_entropy(p_BC) + _entropy(1 - p_BC) if findings else _entropy(p_BC)).sum(1)


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p)


def disagreement_of(outs: list[dict[str, Tensor]]) -> Tensor:
    """(B,) variance over the views of each class score, mean over the classes; without class
    scores, 1 - mean cosine between the embedding of the first view and those of the others.

    Args:
        outs: what the model says of each view, the unperturbed one first.
    """
    if "scores" in outs[0]:
        return torch.stack([out["scores"] for out in outs]).var(0, unbiased=False).mean(1)
    plain, *others = (F.normalize(out["encoder"].flatten(1), dim=1) for out in outs)
    return 1 - torch.stack([(plain * other).sum(1) for other in others]).mean(0)


def perturbed(images: Tensor, ids: Iterable[str], noise: Tensor) -> list[Tensor]:
    """Six views (B, C, H, W): as they are; with a tenth cut off on the left, the right, at the top,
    at the bottom and resized back; with N(0, 0.015) added to each pixel, drawn by the image's id.

    Args:
        noise: (C, 1, 1) scale of the noise, 1 / std where pixels were normalised.
    """
    height, width = images.shape[-2:]
    top, left = math.ceil(CUT * height), math.ceil(CUT * width)
    cuts = (
        images[..., left:],
        images[..., : width - left],
        images[..., top:, :],
        images[..., : height - top, :],
    )
    back = [F.interpolate(cut, (height, width), mode="bilinear", antialias=True) for cut in cuts]
    drawn = torch.stack([_noise(name, images.shape[1:]) for name in ids])
    return [images, *back, images + (NOISE * noise * drawn).to(images)]


def _noise(name: str, shape: torch.Size) -> Tensor:
    seed = (
        int.from_bytes(
            hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big"
        )
        >> 1
    )
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def highest(scores: np.ndarray, ids: list[str]) -> list[int]:
    """All rows, highest score first, equal ones in the order of their ids."""
    return sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
