"""PCA, t-SNE and UMAP pictures of the embeddings, each with the numbers that keep the eye
honest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import progress, warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, unit_rows
from vilmedic_ssl.post_processing._project import methods, project
from vilmedic_ssl.post_processing._scatter import scatter
from vilmedic_ssl.post_processing._shared import Features, SplitFeatures, Value
from vilmedic_ssl.registry import closest, proto

UNLABELLED = "image"
FEWEST = 4  # points below which a picture shows nothing


@proto
def plot_representation(
    features: Features,
    out: Path,
    *,
    keys: list[str],
    labels_keep: list[str] | None = None,
    max_samples_per_class: int | None = 250,
    max_points: int = 2000,
    perplexity: float = 30.0,
) -> Iterator[tuple[str, Value]]:
    """Draw every key of every split, in full and with at most so many images per class.

    An image with several findings is drawn when exactly one of `labels_keep` (of all names, if not
    given) is positive; without labels all images are drawn in one colour. Rows are brought to unit
    length first, as the cosine compares them. UMAP is drawn when umap-learn is installed. The class
    a point belongs to is fixed before anything is drawn, and all keys show the same images.

    Files, in `plot_representation_<tag>_<split>/`: `<split>_<key>_embeddings.npy` (N, D) and
    `_labels.npy` (N,) text of every image kept, before any sampling;
    `<split>_<key>_<full|sampled>_<PCA|TSNE|UMAP>.png`.

    Args:
        keys: the features to draw: encoder, visual (and linguistic for paired models).
        labels_keep: the classes to draw; others are left out.
        max_samples_per_class: images per class in the sampled picture; null draws only the full
            one.
        max_points: images at most in any picture, drawn at random beyond (t-SNE takes seconds per
            thousand).
        perplexity: t-SNE's neighbourhood; lowered to a third of the points where there are few.

    Yields:
        "<split>/plot_representation/<key>/silhouette", ".../knn_purity" and ".../knn_purity_chance"
        of the embeddings (not of the picture) for all images kept, neighbours of the same patient
        not counted; and the pictures.

    Raises:
        UserError: none of the keys or of `labels_keep` exists, or no split has four images to draw.
    """
    drawn = 0
    for split in features.splits:
        part = features.get(split)
        rows, names_N, order = select(part, labels_keep)
        if len(rows) < FEWEST:
            warn(
                f"plot_representation: {split} has {len(rows)} images to draw, {FEWEST} are needed"
            )
            continue
        folder = out / f"plot_representation_{features.tag}_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        patients = None if part.patients is None else [part.patients[i] for i in rows]
        views = choose(names_N, max_samples_per_class, max_points, seed=features.seed)
        for key in keys:
            if key not in part.rows:
                known = ", ".join(sorted(part.rows))
                warn(f"plot_representation.keys: {split} has no {key!r} features; known: {known}")
                continue
            drawn += 1
            stem, x_ND = folder / f"{split}_{key}", part.rows[key][rows]
            np.save(f"{stem}_embeddings.npy", x_ND, allow_pickle=False)
            numbers = {}
            if order:
                np.save(f"{stem}_labels.npy", names_N, allow_pickle=False)
                numbers = judge(x_ND, names_N, patients)
            for name, value in numbers.items():
                yield f"{split}/plot_representation/{key}/{name}", value
            yield from pictures(
                unit_rows(as_features(x_ND, f"{split} {key}")),
                names_N,
                views,
                stem,
                title=f"{key}, {split}",
                words=spell(numbers),
                order=order,
                perplexity=perplexity,
                seed=features.seed,
            )
    if not drawn:
        raise UserError(
            "plot_representation: nothing to draw; look at keys and labels_keep "
            "in the light of the warnings above"
        )


def select(
    part: SplitFeatures, labels_keep: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The images that show exactly one class of `labels_keep`.

    Returns:
        (K,) int64 rows in their order, (K,) their class names, and the names that may occur,
        none without labels.

    Raises:
        UserError: `labels_keep` names none of the classes.
    """
    if part.labels is None:
        return np.arange(len(part.ids)), np.full(len(part.ids), UNLABELLED), []
    known = list(part.label_names)
    keep = known if labels_keep is None else [name for name in labels_keep if name in known]
    for name in labels_keep or ():
        if name not in known:
            warn(f"plot_representation.labels_keep: there is no {name!r}; {closest(name, known)}")
    if not keep:
        raise UserError(
            f"plot_representation.labels_keep: none of these classes exists; "
            f"known: {', '.join(known)}"
        )
    single = part.labels.ndim == 1
    positive_NC = (metrics.one_hot(part.labels, len(known)) if single else part.labels) == 1
    positive_NK = positive_NC[:, [known.index(name) for name in keep]]
    rows = np.flatnonzero(positive_NK.sum(axis=1) == 1)
    return rows, np.array(keep)[positive_NK[rows].argmax(axis=1)], sorted(keep)


def judge(
    x_ND: np.ndarray, names_N: np.ndarray, patients: Sequence[str] | None
) -> dict[str, float]:
    """Silhouette, kNN purity and its chance level; what is undefined is left out."""
    values = {
        "silhouette": metrics.silhouette(x_ND, names_N),
        "knn_purity": metrics.knn_purity(x_ND, names_N, groups=patients),
        "knn_purity_chance": metrics.knn_purity_chance(names_N, groups=patients),
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}


def spell(numbers: dict[str, float]) -> str:
    """The numbers as the words under a title."""
    words = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in numbers.items()]
    return " · ".join(words).replace(" · knn purity chance", ", chance").replace("knn", "kNN")


def choose(
    names_N: np.ndarray, per_class: int | None, most: int, *, seed: int
) -> dict[str, np.ndarray]:
    """The rows of each picture, ascending: "full" and, when asked for, "sampled"."""
    mixed = np.random.default_rng(seed).permutation(len(names_N))
    views = {"full": np.sort(mixed[:most])}
    if per_class is not None:
        picked = [mixed[names_N[mixed] == name][:per_class] for name in np.unique(names_N)]
        again = np.random.default_rng(seed).permutation(np.concatenate(picked))
        views["sampled"] = np.sort(again[:most])
    return views


def pictures(
    x_ND: np.ndarray,
    names_N: np.ndarray,
    views: dict[str, np.ndarray],
    stem: Path,
    *,
    title: str,
    words: str,
    order: list[str],
    perplexity: float,
    seed: int,
) -> Iterator[tuple[str, Path]]:
    """Every projection of every view; a sample that leaves nothing out is copied, not shown."""
    jobs = [(view, method) for view in views for method in methods()]
    for view, method in progress(jobs, desc=f"pictures of {title}", unit="picture"):
        rows, path = views[view], Path(f"{stem}_{view}_{method}.png")
        if view == "sampled" and np.array_equal(rows, views["full"]):
            shutil.copyfile(f"{stem}_full_{method}.png", path)
            continue
        xy_N2, axes = project(method, x_ND[rows], perplexity=perplexity, seed=seed)
        part = f" of {len(x_ND):,}" if len(rows) < len(x_ND) else ""
        name = f"{method.replace('TSNE', 't-SNE')} of {title}"
        subtitle = " · ".join(filter(None, (f"{len(rows):,}{part} images", words)))
        scatter(xy_N2, names_N[rows], path, title=name, subtitle=subtitle, axes=axes, order=order)
        yield f"{name} ({view})", path
