"""Dividing patients, who are never cut in two, so that every part has its share of every label.

Shapes: G patients, L labels, F further columns, S parts. `counts` says how many images of a
patient show a label, `home` in which part each patient is. All results depend on the seed and on
the order of patients, which callers sort.
"""

from __future__ import annotations

import numpy as np

PROPOSALS = 256  # moves and swaps looked at before the best is taken
PATIENCE = 40  # rounds of proposals without a better one that end the search
ROUNDS = 2000
STARTS, FEW = 10, 1000  # further searches, for cohorts of fewer patients
EPS = 1e-9


def stratify(
    counts_GL: np.ndarray,
    sizes_G: np.ndarray,
    shares_S: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """(G,) int64: iterative stratification (Sechidis et al. 2011) with patients for examples.

    The rarest label that is left is dealt first, its richest patients first, each to the part that
    is relatively emptiest of that label, then of images. "Relatively" is Webster's rule,
    (images there + half the patient's) / share: parts fill evenly all the way, so that none gets
    the patients with many images, and patients of one image with one class each come out within
    one image of their share of every class.
    """
    random = np.random.default_rng(seed)
    order_G = random.permutation(len(sizes_G))
    home_G = np.full(len(sizes_G), -1)
    has_SL, has_S = np.zeros((len(shares_S), counts_GL.shape[1])), np.zeros(len(shares_S))
    while (home_G < 0).any():
        left_L = counts_GL[home_G < 0].sum(0)
        rarest = int(np.where(left_L > 0, left_L, np.inf).argmin()) if left_L.any() else None
        rank_G = sizes_G if rarest is None else counts_GL[:, rarest]
        todo = order_G[(home_G[order_G] < 0) & (rank_G[order_G] > 0)]
        todo = todo[np.lexsort((-sizes_G[todo], -rank_G[todo]))]
        shown = None if rarest is None else (has_SL[:, rarest], counts_GL[todo, rarest])
        home_G[todo] = _deal(shown, (has_S, sizes_G[todo]), shares_S, random)
        np.add.at(has_SL, home_G[todo], counts_GL[todo])
        np.add.at(has_S, home_G[todo], sizes_G[todo])
    return _filled(home_G, sizes_G, shares_S)


def _deal(
    shown: tuple[np.ndarray, np.ndarray] | None,
    images: tuple[np.ndarray, np.ndarray],
    shares_S: np.ndarray,
    random: np.random.Generator,
) -> list[int]:
    """The part of each of some patients, in their order: the emptiest of a label, then of images.

    Plain numbers, for an array of three costs more than what is done with it.

    Args:
        shown: images with the label in each part so far, and those of each patient; None = there
            is no label to go by. images: likewise, of all images.
    """
    shares, parts = shares_S.tolist(), range(len(shares_S))
    pairs = [images] if shown is None else [shown, images]
    columns = [(has.tolist(), more.tolist()) for has, more in pairs]
    homes = []
    for g in range(len(images[1])):
        best = list(parts)
        for has, more in columns:
            fill = [(has[s] + more[g] / 2) / shares[s] for s in best]
            least = min(fill) + EPS
            best = [s for s, value in zip(best, fill, strict=True) if value <= least]
        s = best[int(random.integers(len(best)))] if len(best) > 1 else best[0]
        for has, more in columns:
            has[s] += more[g]
        homes.append(s)
    return homes


def _filled(home_G: np.ndarray, sizes_G: np.ndarray, shares_S: np.ndarray) -> np.ndarray:
    """No part stays empty if it can be helped: it takes the smallest patient of the part with most
    patients.
    """
    for s in range(len(shares_S)):
        if not (home_G == s).any():
            patients_S = np.bincount(home_G, minlength=len(shares_S))
            donors = np.flatnonzero(home_G == patients_S.argmax())
            if len(donors) > 1:
                home_G[donors[sizes_G[donors].argmin()]] = s
    return home_G


def deviation(
    home_G: np.ndarray, counts_GL: np.ndarray, sizes_G: np.ndarray, parts: int
) -> np.ndarray:
    """(L,) largest difference, over the parts, between the fraction of a part's images that show a
    label and the fraction of all images that do.
    """
    n_SL, n_S = _sums(home_G, counts_GL, parts), _sums(home_G, sizes_G[:, None], parts)
    there = n_S[:, 0] > 0
    rate_SL = n_SL[there] / n_S[there]
    return np.abs(rate_SL - counts_GL.sum(0) / sizes_G.sum()).max(0)


def _sums(home_G: np.ndarray, counts_GF: np.ndarray, parts: int) -> np.ndarray:
    """(S, F) counts per part."""
    n_SF = np.zeros((parts, counts_GF.shape[1]))
    np.add.at(n_SF, home_G, counts_GF)
    return n_SF


def balance(
    start_G: np.ndarray,
    counts_GL: np.ndarray,
    more_GF: np.ndarray,
    sizes_G: np.ndarray,
    shares_S: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """(G,) int64: a division made more homogeneous by moving and swapping patients.

    A change is taken when neither measure gets worse and one gets better: the largest `deviation`
    over the labels, and the chi-square distance from equal distribution, the sum of
    (count - share)^2 / share over labels, further columns (label combinations, patients) and
    images; and when no part loses a label that enough patients show for one in each part. With few
    patients the search also starts from random divisions, and the best end counts. So the result
    is never worse than the start by either measure.
    """
    random = np.random.default_rng(seed)
    all_GF = np.concatenate([counts_GL, more_GF], axis=1)
    best = _Division(start_G, counts_GL, more_GF, sizes_G, shares_S).search(random)
    for start in range(STARTS if len(sizes_G) < FEW else 0):
        home_G = stratify(counts_GL[:, :0], sizes_G, shares_S, seed=seed + start)
        for labels_GL, more in ((counts_GL[:, :0], all_GF), (counts_GL, more_GF)):
            end = _Division(home_G, labels_GL, more, sizes_G, shares_S).search(random)
            home_G = end.home_G
        covers = end.uncovered <= best.uncovered
        if covers and end.worst <= best.worst + EPS and end.chi <= best.chi + EPS:
            best = end
    return best.home_G


class _Division:
    """A division with its counts, and the search for better ones."""

    def __init__(
        self,
        home_G: np.ndarray,
        counts_GL: np.ndarray,
        more_GF: np.ndarray,
        sizes_G: np.ndarray,
        shares_S: np.ndarray,
    ):
        self.home_G, self.parts = home_G.copy(), len(shares_S)
        columns = [c[:, c.sum(0) > 0] for c in (counts_GL, more_GF, sizes_G[:, None])]
        self.labels = columns[0].shape[1]
        self.c_GF = np.concatenate(columns, axis=1).astype(np.float64)
        self.total_F = self.c_GF.sum(0)
        self.want_SF = shares_S[:, None] * self.total_F
        self.n_SF = _sums(self.home_G, self.c_GF, self.parts)
        patients_L = (self.c_GF[:, : self.labels] > 0).sum(0)
        self.needed = np.flatnonzero(patients_L >= self.parts)

    @property
    def uncovered(self) -> int:
        """Parts without a label that enough patients show for one in each, over all such labels."""
        return int((self.n_SF[:, self.needed] <= 0).sum())

    @property
    def worst(self) -> float:
        """The largest deviation over labels and parts."""
        return float(self._worst(self.n_SF).max())

    @property
    def chi(self) -> float:
        """The chi-square distance from equal distribution."""
        return float(self._chi(self.n_SF, np.arange(self.parts)).sum())

    def _worst(self, n_XF: np.ndarray) -> np.ndarray:
        """(..., F) counts of parts -> (...,) their largest deviation over the labels."""
        rate_XL = n_XF[..., : self.labels] / np.maximum(n_XF[..., -1:], EPS)
        overall_L = self.total_F[: self.labels] / self.total_F[-1]
        return np.abs(rate_XL - overall_L).max(-1, initial=0)

    def _chi(self, n_PF: np.ndarray, part_P: np.ndarray) -> np.ndarray:
        """(P,) chi-square terms of parts with these counts."""
        want_PF = self.want_SF[part_P]
        return ((n_PF - want_PF) ** 2 / want_PF).sum(1)

    def search(self, random: np.random.Generator) -> _Division:
        """Improve until nothing better is found for a while."""
        idle = 0
        for _ in range(ROUNDS if len(self.home_G) > self.parts > 1 else 0):
            idle = 0 if self._improve(random) else idle + 1
            if idle == PATIENCE:
                break
        return self

    def _improve(self, random: np.random.Generator) -> bool:
        """Take the best of some random changes; False when none is better."""
        worst_S = self._worst(self.n_SF)
        a_P = random.integers(len(self.home_G), size=PROPOSALS)
        inside = np.flatnonzero(self.home_G == worst_S.argmax())
        half = PROPOSALS // 2  # only a change of the worst part can lower the largest deviation
        a_P[:half] = inside[random.integers(len(inside), size=half)]
        b_P = random.integers(len(self.home_G), size=PROPOSALS)
        s_P, u_P = self.home_G[a_P], self.home_G[b_P]
        swap_P = random.random(PROPOSALS) < 0.75  # else a moves to the part of b
        change_PF = swap_P[:, None] * self.c_GF[b_P] - self.c_GF[a_P]
        s_PF, u_PF = self.n_SF[s_P] + change_PF, self.n_SF[u_P] - change_PF
        gain_P = self._chi(self.n_SF[s_P], s_P) + self._chi(self.n_SF[u_P], u_P)
        gain_P -= self._chi(s_PF, s_P) + self._chi(u_PF, u_P)
        worst_PS, row_P = np.repeat(worst_S[None], PROPOSALS, axis=0), np.arange(PROPOSALS)
        worst_PS[row_P, s_P], worst_PS[row_P, u_P] = self._worst(s_PF), self._worst(u_PF)
        lower_P = worst_S.max() - worst_PS.max(1)
        fair_P = (s_P != u_P) & (s_PF[:, -1] > 0) & (gain_P > -EPS) & (lower_P > -EPS)
        fair_P &= (gain_P > EPS) | (lower_P > EPS)
        for part_P, after_PF in ((s_P, s_PF), (u_P, u_PF)):
            lost_PL = (after_PF[:, self.needed] <= 0) & (self.n_SF[part_P][:, self.needed] > 0)
            fair_P &= ~lost_PL.any(1)
        if not fair_P.any():
            return False
        p = int(np.lexsort((-gain_P, -np.where(fair_P, lower_P, -np.inf)))[0])
        self.home_G[a_P[p]] = u_P[p]
        if swap_P[p]:
            self.home_G[b_P[p]] = s_P[p]
        self.n_SF[s_P[p]], self.n_SF[u_P[p]] = s_PF[p], u_PF[p]
        return True


def nest(
    counts_GL: np.ndarray, sizes_G: np.ndarray, fractions: list[float], *, seed: int
) -> tuple[np.ndarray, list[int]]:
    """Nested fractions: (G,) the number of the smallest one each patient belongs to, len(fractions)
    for none, and the labels of which the smallest fraction holds no image although there are some.

    The differences between neighbouring fractions are dealt like splits, so each union is
    stratified. Then labels that the smallest fraction lacks are swapped or added in, rarest first,
    as far as its share of images and the other labels allow; it holds one patient at least.

    Args:
        fractions: ascending, between 0 and 1.
    """
    shares_S = np.diff([0.0, *fractions, 1.0])
    level_G = stratify(counts_GL, sizes_G, shares_S, seed=seed)
    even_GF = np.concatenate([counts_GL, np.ones((len(sizes_G), 1))], axis=1)
    division = _Division(level_G, counts_GL[:, :0], even_GF, sizes_G, shares_S)
    level_G = division.search(np.random.default_rng(seed)).home_G  # by chi-square alone
    room = max(fractions[0] * sizes_G.sum(), sizes_G[level_G == 0].sum())
    absent = []
    for label in np.argsort(counts_GL.sum(0), kind="stable"):
        has_G = counts_GL[:, label] > 0
        if not has_G.any() or (has_G & (level_G == 0)).any():
            continue
        if not _let_in(level_G, np.flatnonzero(has_G), counts_GL, sizes_G, room):
            absent.append(int(label))
    return level_G, sorted(absent)


def _let_in(
    level_G: np.ndarray,
    candidates: np.ndarray,
    counts_GL: np.ndarray,
    sizes_G: np.ndarray,
    room: float,
) -> bool:
    """Bring one of some patients into level 0, alone or for another one that is not needed there;
    False when that would cost a label or more than `room` images.
    """
    inside = np.flatnonzero(level_G == 0)
    have_L, size = counts_GL[inside].sum(0), sizes_G[inside].sum()
    for g in candidates[np.argsort(sizes_G[candidates], kind="stable")]:
        if size + sizes_G[g] <= room:
            level_G[g] = 0
            return True
        after_XL = have_L + counts_GL[g] - counts_GL[inside]
        spare_X = ((after_XL > 0) | (have_L == 0)).all(1)
        spare_X &= size + sizes_G[g] - sizes_G[inside] <= room
        if spare_X.any():
            leaves = inside[spare_X][0]
            level_G[leaves], level_G[g] = level_G[g], 0
            return True
    return False
