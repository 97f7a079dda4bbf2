"""Does a classifier of real films find in drawn ones what their reports say?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._numbers import numbered, warn_of_intervals
from vilmedic_ssl.post_processing._shared import Features, Value

if TYPE_CHECKING:
    from vilmedic_ssl.post_processing._drawn import Request


class Judge:
    """A classifier of another run, for the labels of a split.

    Raises:
        UserError: no labels, no classifier, or one of other labels.
    """

    def __init__(self, features: Features, split: str, path: str):
        self.model, self.processor = features.load(path)
        self.features, self.split = features, split
        if not self.model.classifies:
            raise UserError(
                f"generate_images.judge: {path} is a {type(self.model).__name__}, which tells no "
                "classes; name the run folder of a Classifier"
            )
        dataset = features.dataset(split)
        if dataset.labels is None:
            raise UserError(
                f"generate_images.judge: {split} has no labels; name them in `dataset`, as in the "
                f"training of {path}"
            )
        here, there = list(dataset.label_names), self.processor.label_names
        if here != there:
            raise UserError(
                f"generate_images.judge: {path} tells {', '.join(there)} apart, this data has "
                f"{', '.join(here)}; give the dataset keys it was trained with"
            )
        known = dataset.labels
        self.hot_NC = known if known.ndim == 2 else metrics.one_hot(known, len(here))

    def scores(self, requests: Sequence[Request], draws: int) -> Iterator[tuple[str, Value]]:
        """AUROC of the classifier's scores against the labels of the reports, and how often its
        likeliest label is one of them; intervals over the patients of the reports.

        Raises:
            UserError: nothing was drawn for a film of the split.
        """
        import torch

        some = [(r, r.row) for r in requests if r.kept and r.row is not None]
        if not some:
            raise UserError("generate_images.judge: no image is there for a report with labels")
        view = self.processor.view_of
        with torch.no_grad():
            images = [torch.stack([view(kept[0]) for kept in r.kept]) for r, _ in some]
            scores = [self.model.encode(x)["scores"].float().numpy() for x in images]
        score_MC = np.concatenate(scores)
        of_M = [row for r, row in some for _ in r.kept]
        patients = self.features.dataset(self.split).patients
        group_M = np.array([str(row) if patients is None else patients[row] for row in of_M])
        hot_MC = self.hot_NC[of_M]
        told_MC = np.nan_to_num(hot_MC) > 0

        where = f"{self.split}/generate_images/judge"
        drawn: dict[str, Any] = {"draws": draws}
        counted_C = metrics.rankable(hot_MC, score_MC)

        def mean(hot: np.ndarray, score: np.ndarray) -> float:
            return metrics.mean_of(metrics.columns(metrics.auroc, hot, score), counted_C)

        evidence = metrics.Evidence(hot_MC, hot_MC.shape[1], group_M)
        support = evidence.of_mean(counted_C)
        found = metrics.resample(
            mean, hot_MC, score_MC, groups=group_M, support=support, limits=metrics.UNIT, **drawn
        )
        warn_of_intervals("generate_images", self.split, found)
        yield from numbered([f"{where}/auroc"], found).items()
        named_M = told_MC.any(1)  # a report may name nothing
        if named_M.any():
            first_M1 = score_MC.argmax(1)[:, None]
            hit_M = np.take_along_axis(told_MC, first_M1, 1)[named_M, 0].astype(float)
            groups = group_M[named_M]
            found = metrics.resample(np.mean, hit_M, groups=groups, limits=metrics.UNIT, **drawn)
            yield from numbered([f"{where}/named_first"], found).items()
            yield f"{where}/named_first/chance", float(told_MC[named_M].mean(1).mean())
