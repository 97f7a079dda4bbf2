"""Does a classifier of real films find in drawn ones what their reports say?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._shared import Features, Value, labels_of

if TYPE_CHECKING:
    from vilmedic_ssl.post_processing._drawn import Request


def judged(
    features: Features, split: str, requests: Sequence[Request], path: str, *, draws: int
) -> Iterator[tuple[str, Value]]:
    """AUROC of the classifier's scores against the labels of the reports, and how often its
    likeliest label is one of them; intervals over the patients of the reports.

    Raises:
        UserError: no labels, no classifier, or one of other labels.
    """
    import torch

    model, processor = features.load(path)
    names = list(features.get(split).label_names)
    known_NC = labels_of(features.get(split), "generate_images.judge")
    if not model.classifies:
        raise UserError(
            f"generate_images.judge: {path} is a {type(model).__name__}, which tells no classes; "
            "name the run folder of a Classifier"
        )
    rows = [request.row for request in requests if request.row is not None]
    if len(rows) < len(requests):
        raise UserError("generate_images.judge: texts of your own have no labels; leave judge out")
    view = processor.view_of
    with torch.no_grad():
        images = [torch.stack([view(kept[0]) for kept in r.kept]) for r in requests]
        score_MC = np.concatenate([model.encode(x)["scores"].float().numpy() for x in images])
    if score_MC.shape[1] != len(names):
        raise UserError(
            f"generate_images.judge: {path} tells {score_MC.shape[1]} labels apart, this data has "
            f"{len(names)}; train it with the same dataset keys"
        )
    hot_NC = known_NC if known_NC.ndim == 2 else metrics.one_hot(known_NC, len(names))
    of_M = [row for r, row in zip(requests, rows, strict=True) for _ in r.kept]
    hot_MC = hot_NC[of_M]
    patients = features.get(split).patients
    group_M = [str(row) if patients is None else patients[row] for row in of_M]
    told = np.nan_to_num(hot_MC) > 0
    named_M = told.any(1)  # a report may name nothing

    def scores(hot: np.ndarray, score: np.ndarray) -> float:
        return metrics.macro(metrics.columns(metrics.auroc, hot, score))

    where = f"{split}/generate_images/judge"
    found = metrics.bootstrap(scores, hot_MC, score_MC, groups=group_M, draws=draws)
    yield f"{where}/auroc", found
    if named_M.any():
        hit_M = np.take_along_axis(told, score_MC.argmax(1)[:, None], 1)[:, 0][named_M]
        groups = [g for g, named in zip(group_M, named_M, strict=True) if named]
        yield (
            f"{where}/named_first",
            metrics.bootstrap(lambda hit: float(hit.mean()), hit_M, groups=groups, draws=draws),
        )
        yield f"{where}/named_first/chance", float(told[named_M].mean(1).mean())
