"""The images a classifier is most wrong about, and those it cannot decide on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.post_processing._scores import By, Scored, judged_splits
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

COLUMNS = 4
LETTERS = 30  # of a name under a picture
KINDS = {
    "wrong": "most confidently wrong: mistakes of the model, or of the label",
    "uncertain": "least certain, right or wrong",
}


@dataclass(frozen=True)
class Case:
    """One picture: row of the split, true and predicted name, probability of what was predicted."""

    row: int
    true: str
    predicted: str
    probability: float


@proto
def failure_gallery(
    features: Features,
    out: Path,
    *,
    n: int = 12,
    by: By = "auto",
    key: str = "encoder",
    splits: list[str] | None = None,
) -> Iterator[tuple[str, Value]]:
    """Show the n images with the most probable wrong class, and the n whose two most probable
    classes are closest; each with id, true and predicted label and probability.

    For findings a case is one known finding of one image: wrong with a probability far on the other
    side of 0.5, or uncertain near 0.5.

    Files: `failure_gallery_<by>_<tag>_<split>_<wrong|uncertain>.png` and `.csv`.

    Args:
        n: pictures of each kind.
        by: who predicts: classifier (the model's own class scores), linear_probe or knn (fitted on
            the features of train), auto = classifier where the model has scores, else linear_probe.
        key: the features that linear_probe and knn look at.
        splits: splits to look at, train to find wrong labels there; null = all but train.

    Raises:
        UserError: no such scores, no labels, nothing to look at, or no dataset of pictures.
    """
    if n < 1:
        raise ConfigError(f"failure_gallery.n: {n}; write 1 or more")
    for scored in judged_splits(features, "failure_gallery", by, key, splits=splits):
        ids = features.get(scored.name).ids
        found = cases_of_classes if scored.y.ndim == 1 else cases_of_findings
        for kind, cases in found(scored, n).items():
            stem = out / f"failure_gallery_{scored.judge}_{features.tag}_{scored.name}_{kind}"
            table, picture = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.png")
            _write(cases, ids, table)
            if cases:
                pictures = features.images(scored.name, [case.row for case in cases])
                title = f"{scored.name}, {scored.told}"
                _draw(cases, [ids[case.row] for case in cases], pictures, picture, title=title)
                yield f"{title}, {KINDS[kind]}", picture
            yield f"{scored.name}: {KINDS[kind]}", table


def cases_of_classes(scored: Scored, n: int) -> dict[str, list[Case]]:
    """kind -> at most n cases, worst first."""
    y, p_NC, names = scored.y, scored.score_NC, scored.names
    chosen_N, best_N = p_NC.argmax(axis=1), p_NC.max(axis=1)
    wrong = np.flatnonzero((chosen_N != y) & (y >= 0))
    wrong = wrong[np.argsort(-best_N[wrong], kind="stable")][:n]
    ranked_NC = np.sort(p_NC, axis=1)
    near_N = ranked_NC[:, -1] - ranked_NC[:, -2] if len(names) > 1 else best_N
    known = np.flatnonzero(y >= 0)
    near = known[np.argsort(near_N[known], kind="stable")][:n]

    def case(i: int) -> Case:
        return Case(i, names[y[i]], names[chosen_N[i]], float(best_N[i]))

    return {"wrong": [*map(case, wrong.tolist())], "uncertain": [*map(case, near.tolist())]}


def cases_of_findings(scored: Scored, n: int) -> dict[str, list[Case]]:
    """The same over all pairs of an image and a finding that is known for it."""
    y, p_NC = scored.y, scored.score_NC
    known_NC = ~np.isnan(y) & ~np.isnan(p_NC)
    off_NC = np.where(known_NC, np.abs(p_NC - y), -1.0)
    wrong_NC = known_NC & ((p_NC > 0.5) != (y == 1))
    near_NC = np.where(known_NC, np.abs(p_NC - 0.5), np.inf)

    def cases(order: np.ndarray, allowed_NC: np.ndarray) -> list[Case]:
        rows, columns = np.unravel_index(order[allowed_NC.ravel()[order]][:n], y.shape)
        made = []
        for i, c in zip(rows.tolist(), columns.tolist(), strict=True):
            name, found = scored.names[c], p_NC[i, c] > 0.5
            said = p_NC[i, c] if found else 1 - p_NC[i, c]
            true, predicted = (name if yes else f"no {name}" for yes in (y[i, c] == 1, found))
            made.append(Case(i, true, predicted, float(said)))
        return made

    worst = np.argsort(-off_NC, axis=None, kind="stable")
    nearest = np.argsort(near_NC, axis=None, kind="stable")
    return {"wrong": cases(worst, wrong_NC), "uncertain": cases(nearest, known_NC)}


def _write(cases: Sequence[Case], ids: Sequence[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write = csv.writer(file).writerow
        write(["id", "true", "predicted", "probability"])
        for case in cases:
            write([ids[case.row], case.true, case.predicted, f"{case.probability:.6g}"])


def _draw(
    cases: Sequence[Case],
    names: Sequence[str],
    pictures: Sequence[np.ndarray],
    path: Path,
    *,
    title: str,
) -> None:
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    height = 2.1 * pictures[0].shape[0] / pictures[0].shape[1] + 0.85
    size = max(4.2, 2.2 * columns), height * rows + 0.4
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for plot in plots:
        plot.set_axis_off()
    for plot, case, name, picture in zip(plots, cases, names, pictures, strict=False):
        plot.imshow(picture, cmap="gray", vmin=0, vmax=255)
        words = [
            _short(name),
            _short(f"true {case.true}", end=True),
            _short(f"said {case.predicted}", end=True),
            f"with {case.probability:.2f}",
        ]
        shown = "\n".join(words).encode(errors="backslashreplace").decode()  # not all UTF-8
        plot.set_title(shown, fontsize=8, loc="left", color="#1b1f24")
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    figure.savefig(path, dpi=150)


def _short(text: str, *, end: bool = False) -> str:
    """At most so many letters: of a path the last ones, of words the first ones (`end`)."""
    if len(text) <= LETTERS:
        return text
    return f"{text[: LETTERS - 1]}…" if end else f"…{text[1 - LETTERS :]}"
