"""From many dimensions to two, with few rows and collapsed embeddings in mind."""

from __future__ import annotations

import warnings

import numpy as np

Axes = tuple[str, str] | None


def methods() -> list[str]:
    """PCA and TSNE, and UMAP when umap-learn is installed."""
    try:
        import umap  # noqa: F401
    except ImportError:
        return ["PCA", "TSNE"]
    return ["PCA", "TSNE", "UMAP"]


def project(
    method: str, x_ND: np.ndarray, *, perplexity: float, seed: int
) -> tuple[np.ndarray, Axes]:
    """(N, 2) positions by one of `methods()`, and names for the axes where they mean something."""
    if method == "PCA":
        return pca(x_ND, seed=seed)
    if method == "TSNE":
        return tsne(x_ND, perplexity=perplexity, seed=seed), None
    return umap(x_ND, seed=seed), None


def pca(x_ND: np.ndarray, *, seed: int) -> tuple[np.ndarray, Axes]:
    """The first two principal components, and the share of variance each explains."""
    from sklearn.decomposition import PCA

    model = PCA(n_components=min(2, *x_ND.shape), random_state=seed)
    with warnings.catch_warnings():  # a collapsed embedding has no variance to divide by
        warnings.simplefilter("ignore", RuntimeWarning)
        xy = model.fit_transform(x_ND)
    missing = 2 - xy.shape[1]
    first, second = np.nan_to_num(np.pad(model.explained_variance_ratio_, (0, missing)))
    axes = (f"component 1 ({first:.0%} of variance)", f"component 2 ({second:.0%} of variance)")
    return np.pad(xy, ((0, 0), (0, missing))), axes


def tsne(x_ND: np.ndarray, *, perplexity: float, seed: int) -> np.ndarray:
    """t-SNE of the first 50 principal components; perplexity at most a third of the other rows."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if min(x_ND.shape) > 50:
        x_ND = PCA(n_components=50, random_state=seed).fit_transform(x_ND)
    few = min(perplexity, (len(x_ND) - 1) / 3)
    init = "pca" if x_ND.shape[1] > 1 and np.ptp(x_ND, axis=0).max() > 0 else "random"
    return TSNE(perplexity=few, init=init, random_state=seed).fit_transform(x_ND)


def umap(x_ND: np.ndarray, *, seed: int) -> np.ndarray:
    """UMAP by cosine; its 15 neighbours are lowered where there are few rows."""
    from umap import UMAP

    with warnings.catch_warnings():  # it says that a fixed seed means one thread
        warnings.simplefilter("ignore")
        few = min(15, len(x_ND) - 1)
        return UMAP(n_neighbors=few, metric="cosine", random_state=seed).fit_transform(x_ND)
