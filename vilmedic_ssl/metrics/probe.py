"""Linear probe: how much of the answer a straight line finds in frozen features."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, as_labels, group_numbers

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C on standardised features
PATIENCE = 2  # validation loss is close to convex in log C: after two worse steps the best is known
FALLBACK = 1e-2  # where neither validation nor training can choose
FOLDS = 5  # of the cross-validation that chooses where validation cannot
FEWEST = 10  # validation rows that can choose
Head = Callable[[np.ndarray], np.ndarray]
"""(M, D) standardised features -> (M, C) probabilities."""


@dataclass(frozen=True)
class Choice:
    """How the regularisation strength of one model came about.

    Attributes:
        by: validation, cross-validation over training groups, the default; nothing where a single
            class left nothing to choose.
        because: why validation did not choose, as what follows its name in a sentence; else "".
    """

    by: Literal["validation", "cross-validation", "default", "nothing"]
    because: str = ""


@dataclass
class LinearProbe:
    """A fitted probe; called with (M, D) features it gives the class probabilities (M, C).

    Attributes:
        choices: one for all classes, or one per finding.
    """

    mean_D: np.ndarray
    std_D: np.ndarray
    heads: list[Head]
    choices: list[Choice]
    findings: bool

    def __call__(self, x: Any) -> np.ndarray:
        """As `linear_probe` returns them.

        Raises:
            UserError: wrong shape, or features that are not finite.
        """
        z_MD = (as_features(x, "test_x").astype(np.float64) - self.mean_D) / self.std_D
        if not self.findings:
            return self.heads[0](z_MD)
        return np.stack([head(z_MD)[:, 1] for head in self.heads], axis=1)


def linear_probe(
    train_x: Any,
    train_y: Any,
    val_x: Any,
    val_y: Any,
    test_x: Any,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    grid: Sequence[float] = GRID,
) -> np.ndarray:
    """Class probabilities of an L2 logistic regression on features standardised with the training
    rows.

    The regularisation strength C is the one of `grid` (ascending) with the lowest cross-entropy on
    validation; the training rows alone are fitted. Findings get one binary model each, on the rows
    where they are known, each with its own C. What has a single class in training gets a constant
    score: that class's share (0 or 1).

    Validation that lacks a class of training, or has fewer than 10 rows of its classes, would
    choose a C that serves the others: then C is chosen by cross-validation over groups of training
    rows (5 folds, fewer where a class has fewer groups), rows of classes that a fold's fit has not
    seen left out. Where fewer than two classes have two groups, C is 0.01.

    Args:
        train_x, val_x, test_x: (N, D), (V, D), (M, D) features; V may be 0.
        train_y, val_y: (N,), (V,) classes counted from 0, or (N, C), (V, C) findings in {0, 1,
            nan}.
        groups: N patients of the training rows; None or a blank one: every row by itself.

    Returns:
        (M, C) float64 in [0, 1]; for classes C = largest label + 1 and rows sum to 1;
        nan for a finding that training knows nowhere.

    Raises:
        UserError: wrong shapes or labels, or features that are not finite.
    """
    return fit_probe(train_x, train_y, val_x, val_y, groups=groups, grid=grid)(test_x)


def fit_probe(
    train_x: Any,
    train_y: Any,
    val_x: Any,
    val_y: Any,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    grid: Sequence[float] = GRID,
) -> LinearProbe:
    """The probe behind `linear_probe`, to be asked more than once; arguments, errors as there."""
    train_x = as_features(train_x, "train_x").astype(np.float64)
    if len(val_x):
        val_x = as_features(val_x, "val_x").astype(np.float64)
    else:
        val_x = np.empty((0, train_x.shape[1]))
    y_train = as_labels(train_y, "train_y", rows=len(train_x))
    y_val = as_labels(val_y, "val_y", rows=len(val_x))
    if y_train.shape[1:] != y_val.shape[1:]:
        raise UserError(f"linear_probe: labels {y_train.shape} and {y_val.shape} are of two kinds")
    mean_D, std_D = train_x.mean(axis=0), train_x.std(axis=0)
    std_D[std_D < 1e-12] = 1.0
    train, val = (train_x - mean_D) / std_D, (val_x - mean_D) / std_D
    group_N = group_numbers(groups, rows=len(train))
    if y_train.ndim == 1:
        classes = int(max(y_train.max(), y_val.max(initial=0))) + 1
        head, choice = _fit(train, y_train, group_N, val, y_val, classes, grid)
        return LinearProbe(mean_D, std_D, [head], [choice], findings=False)
    heads: list[Head] = []
    choices: list[Choice] = []
    for t, v in zip(y_train.T, y_val.T, strict=True):
        a, b = ~np.isnan(t), ~np.isnan(v)
        head, choice = _constant(np.full(2, np.nan)), Choice("nothing")
        if a.any():
            known = t[a].astype(int), group_N[a], val[b], v[b].astype(int)
            head, choice = _fit(train[a], *known, 2, grid)
        heads.append(head)
        choices.append(choice)
    return LinearProbe(mean_D, std_D, heads, choices, findings=True)


def _constant(share_C: np.ndarray) -> Head:
    return lambda z_MD: np.tile(share_C, (len(z_MD), 1))


def _fit(
    train_ND: np.ndarray,
    y_N: np.ndarray,
    group_N: np.ndarray,
    val_VD: np.ndarray,
    y_V: np.ndarray,
    classes: int,
    grid: Sequence[float],
) -> tuple[Head, Choice]:
    """The model at the C that is best on validation, or where that cannot choose, in
    cross-validation.
    """
    present = np.unique(y_N)
    if len(present) == 1:
        return _constant(np.eye(classes)[present[0]]), Choice("nothing")
    shared_V = np.isin(y_V, present)  # others cost every C the same
    val_VD, y_V = val_VD[shared_V], y_V[shared_V]
    because = _unfit(present, y_V)
    if not because:
        fold = _Fold(train_ND, y_N, val_VD, y_V, classes)
        _search([fold], grid)
        return fold.head(), Choice("validation")
    folds = _folds(train_ND, y_N, group_N, classes)
    C, by = (_search(folds, grid), "cross-validation") if folds else (FALLBACK, "default")
    whole = _Fold(train_ND, y_N, train_ND[:0], y_N[:0], classes)
    whole.fit(C)
    return whole.head(), Choice(by, because)  # type: ignore[arg-type]


def _unfit(present: np.ndarray, y_V: np.ndarray) -> str:
    """Why validation cannot choose, "" where it can."""
    lacks = len(present) - len(np.unique(y_V))
    if not len(y_V):
        return "has no labelled image of train's classes"
    if lacks:
        return f"lacks {lacks} of train's {len(present)} classes"
    return f"has {len(y_V)} labelled images, fewer than {FEWEST}" if len(y_V) < FEWEST else ""


def _folds(train_ND: np.ndarray, y_N: np.ndarray, group_N: np.ndarray, classes: int) -> list[_Fold]:
    """Parts of the training rows to fit on, with the others, of other groups, to choose by; none
    where fewer than two classes have two groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups_C = np.array([len(np.unique(group_N[y_N == c])) for c in np.unique(y_N)])
    several_C = groups_C[groups_C > 1]
    if len(several_C) < 2:
        return []
    count = min(FOLDS, int(several_C.min()))
    alone = len(np.unique(group_N)) == len(group_N)
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    folds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer groups than folds
        cut = kind(count, shuffle=True, random_state=0).split(train_ND, y_N, group_N)
        for fitted, held in cut:
            held = held[np.isin(y_N[held], y_N[fitted])]
            if len(held) and len(np.unique(y_N[fitted])) > 1:
                parts = train_ND[fitted], y_N[fitted], train_ND[held], y_N[held]
                folds.append(_Fold(*parts, classes))
    return folds


class _Fold:
    """A model of some rows, and other rows to choose its strength by."""

    def __init__(
        self, x_ND: np.ndarray, y_N: np.ndarray, held_VD: np.ndarray, y_V: np.ndarray, classes: int
    ):
        from sklearn.linear_model import LogisticRegression

        # From strong to weak regularisation, each fit starts where the last one ended.
        self.model = LogisticRegression(max_iter=500, warm_start=True)
        self.best: Any = self.model
        self.x_ND, self.y_N, self.held_VD, self.y_V = x_ND, y_N, held_VD, y_V
        self.classes = classes

    def fit(self, C: float) -> None:
        from sklearn.exceptions import ConvergenceWarning

        self.model.set_params(C=C)
        with warnings.catch_warnings():  # a weak C may stop at max_iter: what it got is judged
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(self.x_ND, self.y_N)

    def losses(self) -> np.ndarray:
        """(V,) cross-entropy of the held rows."""
        p_VC = _probabilities(self.model, self.held_VD, self.classes)
        return np.asarray(-np.log(p_VC[np.arange(len(self.y_V)), self.y_V].clip(1e-12)))

    def head(self) -> Head:
        return lambda z_MD: _probabilities(self.best, z_MD, self.classes)


def _search(folds: Sequence[_Fold], grid: Sequence[float]) -> float:
    """The C of `grid` with the lowest mean cross-entropy over the held rows of all folds; each
    fold's `best` is the model of that C.
    """
    chosen, lowest, worse = grid[0], np.inf, 0
    for C in grid:
        for fold in folds:
            fold.fit(C)
        loss = float(np.concatenate([fold.losses() for fold in folds]).mean())
        if loss < lowest:
            chosen, lowest, worse = C, loss, 0
            for fold in folds:
                fold.best = copy.deepcopy(fold.model)
        else:
            worse += 1
            if worse == PATIENCE:
                break
    return chosen


def _probabilities(model: Any, z_MD: np.ndarray, classes: int) -> np.ndarray:
    """Zero for the classes that training did not show."""
    p_MC = np.zeros((len(z_MD), classes))
    p_MC[:, model.classes_] = model.predict_proba(z_MD)
    return p_MC
