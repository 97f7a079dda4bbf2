"""Can the size of an image or the kind of its file tell the class? Then a model can, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vilmedic_ssl.data.auditing.findings import Finding, finding
from vilmedic_ssl.data.auditing.pictures import Pictures

FOLDS = 5
FEWEST = 20  # patients with and without a class, below which nothing is tried
CLEAR = 0.65  # AUROC from which a shortcut is worth a warning
ERRORS = 3.0  # standard errors above chance: one in 740 by chance, rare also among 14 findings
FEATURES = ("width", "height", "aspect", "format", "channels")


def confounded(seen: Sequence[Pictures]) -> Iterator[Finding]:
    """Classes that a small decision tree on width, height, aspect, file format and channels tells.

    The tree is scored on patients it has not seen; a class is reported when its AUROC is at least
    0.65 and three standard errors above 0.5 (Hanley and McNeil 1982, counting patients).
    """
    having = [p for p in seen if p.part.labels is not None]
    if not having:
        return
    features, groups = _features(having), _groups(having)
    readable = np.concatenate([p.shape[:, 0] > 0 for p in having])
    names = having[0].part.label_names
    alike = len(np.unique(features[readable], axis=0)) < 2
    if alike or any(p.part.label_names != names for p in having):
        return
    labels = np.concatenate([p.part.labels for p in having])  # type: ignore[misc]
    for name, target in _questions(labels, names):
        use = readable & ~np.isnan(target)
        score = _auroc(features[use], target[use].astype(int), groups[use])
        if score is not None:
            auroc, error, best = score
            if auroc >= CLEAR and auroc - 0.5 >= ERRORS * error:
                yield finding(
                    "confounded",
                    f"{FEATURES[best]} and the like tell {name!r} without looking at the image: "
                    f"AUROC {auroc:.2f} on unseen patients, chance 0.5 +- {error:.2f}",
                    splits=[p.part.name for p in having],
                    examples=[name],
                    count=1,
                )


def _features(seen: Sequence[Pictures]) -> np.ndarray:
    """(N, 5) float64 in the order of FEATURES; formats are numbered."""
    suffixes = [
        path.suffix.lower() if p.part.paths else ""
        for p in seen
        for path in p.part.paths or [None] * len(p.part)  # type: ignore[list-item]
    ]
    number = {suffix: i for i, suffix in enumerate(sorted(set(suffixes)))}
    shape = np.concatenate([p.shape for p in seen]).astype(float)
    aspect = shape[:, 0] / np.maximum(shape[:, 1], 1)
    formats = np.array([number[s] for s in suffixes], dtype=float)
    return np.column_stack([shape[:, :2], aspect, formats, shape[:, 2]])


def _groups(seen: Sequence[Pictures]) -> np.ndarray:
    """(N,) the patient of each image, or itself."""
    names = [
        (p.part.patients[i] if p.part.patients else "") or p.part.row(i)
        for p in seen
        for i in range(len(p.part))
    ]
    return np.unique(np.array(names), return_inverse=True)[1]


def _questions(labels: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(class, (N,) 1, 0 or nan); of two classes one question is enough."""
    if labels.ndim == 2:
        yield from ((name, labels[:, i]) for i, name in enumerate(names))
    else:
        asked = list(names)[1:] if len(names) == 2 else names
        yield from ((name, (labels == list(names).index(name)).astype(float)) for name in asked)


def _auroc(
    features: np.ndarray, target: np.ndarray, groups: np.ndarray
) -> tuple[float, float, int] | None:
    """(out-of-fold AUROC, its standard error by chance, most used feature); None = too few."""
    with_it, without = (len(np.unique(groups[target == value])) for value in (1, 0))
    if min(with_it, without) < FEWEST:
        return None
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.tree import DecisionTreeClassifier

    score, use = np.zeros(len(target)), np.zeros(features.shape[1])
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features, target, groups):
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, random_state=0)
        tree.fit(features[train], target[train])
        if len(tree.classes_) == 2:
            score[test] = tree.predict_proba(features[test])[:, 1]
            use += tree.feature_importances_
    error = np.sqrt((with_it + without + 1) / (12 * with_it * without))  # of Mann and Whitney's U
    return float(roc_auc_score(target, score)), float(error), int(use.argmax())
