"""Orders of patients of which label budgets take beginnings, so that small ones lie inside large
ones.

Shapes: G patients in random order, L labels (classes, or findings and none of them); `counts`
says how many images of a patient show a label, `sizes` how many images a patient has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

WINDOW = 16  # patients in line that are looked at for the one who evens out other labels best


def beginning(counts_GL: np.ndarray, sizes_G: np.ndarray, images: int) -> list[int]:
    """The patients of `ordering` that together have `images` images at most."""
    taken, total = [], 0
    if images >= sizes_G.sum():
        return list(range(len(sizes_G)))
    for g in ordering(counts_GL, sizes_G):
        total += int(sizes_G[g])
        if total > images:
            break
        taken.append(g)
    return taken


def ordering(counts_GL: np.ndarray, sizes_G: np.ndarray) -> Iterator[int]:
    """Every patient once, in an order whose beginnings all have the shares of the whole.

    First the smallest patient of each label, so that none is missing. Then the label next in line
    is the one whose share of the images so far falls due first (Tijdeman 1980, The chairman
    assignment problem, Discrete Mathematics 32, theorem 2): with one image and one class per
    patient no class is then ever a whole image away from its share, once every share is an image.
    Of a label's patients the first one is next, or one of the same size soon behind who
    leaves the other labels nearer to their shares.
    """
    share_L = counts_GL.sum(0) / max(1, sizes_G.sum())
    labels = [int(i) for i in np.argsort(-share_L, kind="stable") if share_L[i] > 0]
    queues = {i: np.flatnonzero(counts_GL[:, i]).tolist() for i in labels}
    done = np.zeros(len(sizes_G), dtype=bool)
    has_L, has = np.zeros(len(share_L)), 0.0

    for i in labels:
        if has_L[i] == 0:
            g = min(queues[i], key=sizes_G.__getitem__)
            done[g], has_L, has = True, has_L + counts_GL[g], has + sizes_G[g]
            yield g
    slack = 1 / max(2, 2 * len(labels) - 2)
    heads = dict.fromkeys(labels, 0)
    while True:
        for i in list(queues):
            while heads[i] < len(queues[i]) and done[queues[i][heads[i]]]:
                heads[i] += 1
            if heads[i] == len(queues[i]):
                del queues[i]
        if not queues:
            break
        lag = {i: share_L[i] * (has + 1) - has_L[i] for i in queues}
        due = [i for i in queues if lag[i] >= slack]
        label = min(due or queues, key=lambda i: (1 - slack - lag[i]) / share_L[i])
        line = [g for g in queues[label][heads[label] : heads[label] + WINDOW] if not done[g]]
        line = [g for g in line if sizes_G[g] == sizes_G[line[0]]]
        g = line[0] if len(line) == 1 else _evenest(line, counts_GL, share_L * (has + 1), has_L)
        done[g], has_L, has = True, has_L + counts_GL[g], has + sizes_G[g]
        yield g


def _evenest(
    line: Sequence[int], counts_GL: np.ndarray, want_L: np.ndarray, has_L: np.ndarray
) -> int:
    """The patient, the first of equals, after whom the labels are nearest to `want`, by the
    chi-square distance.
    """
    there = want_L > 0
    off_PL = (has_L + counts_GL[line] - want_L)[:, there]
    return line[int((off_PL**2 / want_L[there]).sum(1).argmin())]


def up_to(counts_GL: np.ndarray, limit: int) -> np.ndarray:
    """(G,) bool: patients who together show each label in `limit` images at most.

    Limits of 1, 2, 3 ... are filled in turn, each by as many further patients as fit, those with
    rare labels first: so every smaller limit lies inside every larger one, and patients with few
    images come before those with many.
    """
    total_L = np.where(counts_GL.sum(0) > 0, counts_GL.sum(0), np.inf)
    rarest_G = np.where(counts_GL > 0, total_L, np.inf).min(1, initial=np.inf)
    place_G = np.argsort(np.argsort(rarest_G, kind="stable"))
    kinds_PL, of_G = np.unique(counts_GL, axis=0, return_inverse=True)  # who can stand for whom
    lines: list[list[int]] = [[] for _ in kinds_PL]
    for g in np.argsort(-place_G):  # the first in line last, to be popped
        lines[of_G.reshape(-1)[g]].append(int(g))
    taken_G, has_L = np.zeros(len(counts_GL), dtype=bool), np.zeros(counts_GL.shape[1])
    for room in range(1, min(limit, int(counts_GL.sum(0).max(initial=0))) + 1):
        fits_P = np.array([bool(line) for line in lines]) & (kinds_PL > 0).any(1)
        fits_P &= (has_L + kinds_PL <= room).all(1)
        while fits_P.any():
            p = min(np.flatnonzero(fits_P), key=lambda p: place_G[lines[p][-1]])
            taken_G[lines[p].pop()], has_L = True, has_L + kinds_PL[p]
            fits_P &= (has_L + kinds_PL <= room).all(1)
            fits_P[p] &= bool(lines[p])
    return taken_G
