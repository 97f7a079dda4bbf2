"""A division of patients with every label in every part, if there are patients enough.

Shapes as in `stratify`: G patients, L labels, S parts, F = L + 1 columns (labels, then all images).
"""

from __future__ import annotations

import numpy as np

from vilmedic_ssl.data.stratify import stratify

LOOKED = 64  # patients of either part that are tried for a swap
NEAR = 0.01  # share of all images by which a part may miss its share without further ado
MOVES = 1000


def spread(
    counts_GL: np.ndarray, sizes_G: np.ndarray, shares_S: np.ndarray, *, seed: int
) -> np.ndarray:
    """(G,) int64: the division of `stratify`, with two repairs.

    1. A label that at least as many patients show as there are parts comes into every part, in
       exchange for a patient of similar size where that does. So a part can become larger than its
       share; the one with the largest share stays the largest.
    2. A part that is further from its share of the images than 1 % of all, the mean patient, and
       the worst part of a division by size alone, gives or takes patients, as far as the labels
       that it needs allow. Each further move would then make sizes worse, so that without such
       labels no part misses its share by more than the largest patient has images.
    """
    home_G = stratify(counts_GL, sizes_G, shares_S, seed=seed)
    parts = _Parts(home_G, counts_GL, sizes_G, shares_S)
    parts.cover()
    if parts.miss > max(NEAR * sizes_G.sum(), sizes_G.mean()):
        plain_G = stratify(counts_GL[:, :0], sizes_G, shares_S, seed=seed)
        least = _Parts(plain_G, counts_GL, sizes_G, shares_S).miss
        parts.level(max(NEAR * sizes_G.sum(), sizes_G.mean(), least))
    return parts.home_G


class _Parts:
    """A division with its counts, and changes of it.

    Attributes:
        home_G: the part of each patient.
        n_SF: images per part and column. patients_SL: patients per part who show a label.
        needed_L: labels that enough patients show for one in each part.
    """

    def __init__(
        self,
        home_G: np.ndarray,
        counts_GL: np.ndarray,
        sizes_G: np.ndarray,
        shares_S: np.ndarray,
    ):
        self.home_G, self.shares_S = home_G.copy(), shares_S
        self.c_GF = np.concatenate([counts_GL, sizes_G[:, None]], axis=1).astype(np.float64)
        self.shows_GL = counts_GL > 0
        self.needed_L = self.shows_GL.sum(0) >= len(shares_S)
        self.want_SF = np.maximum(shares_S[:, None] * self.c_GF.sum(0), 1e-9)
        self.n_SF = np.zeros_like(self.want_SF)
        self.patients_SL = np.zeros((len(shares_S), counts_GL.shape[1]), dtype=np.int64)
        np.add.at(self.n_SF, home_G, self.c_GF)
        np.add.at(self.patients_SL, home_G, self.shows_GL)

    @property
    def miss_S(self) -> np.ndarray:
        """(S,) images above (or below) the share."""
        return np.asarray(self.n_SF[:, -1] - self.want_SF[:, -1])

    @property
    def miss(self) -> float:
        return float(np.abs(self.miss_S).max())

    def cover(self) -> None:
        """Bring each label that is needed into each part, the rarest first, if it can be done."""
        for label in np.argsort(self.shows_GL.sum(0), kind="stable"):
            for part in range(len(self.shares_S)):
                if self.needed_L[label] and not self.patients_SL[part, label]:
                    self._bring(int(label), part)

    def level(self, near: float) -> None:
        """Move patients between parts until each is within `near` images of its share, or no move
        helps.
        """
        for _ in range(MOVES):
            if self.miss <= near or not self._level_once():
                return

    def _level_once(self) -> bool:
        """Make the gap between two parts smaller, the widest that can be, by the exchange that
        leaves the labels nearest to their shares.
        """
        sizes_G, miss_S = self.c_GF[:, -1], self.miss_S
        gaps = miss_S[:, None] - miss_S
        for pair in np.argsort(-gaps, axis=None, kind="stable"):
            home, part = divmod(int(pair), len(miss_S))
            gap = float(gaps[home, part])
            if gap <= 0:
                return False
            rows = np.flatnonzero(self.home_G == home)
            rows = rows[np.argsort(np.abs(sizes_G[rows] - gap / 2), kind="stable")][:LOOKED]
            if self._exchange_best(rows, part, gap):
                return True
        return False

    def _bring(self, label: int, part: int) -> None:
        """Move a patient with a label into a part, alone or for another one."""
        rows = np.flatnonzero(self.shows_GL[:, label] & (self.home_G != part))
        rows = rows[np.argsort(self.c_GF[rows, -1], kind="stable")][:LOOKED]
        self._exchange_best(rows, part)

    def _exchange_best(self, rows: np.ndarray, part: int, gap: float | None = None) -> bool:
        """Make the best exchange of one of some patients for one of a part, or for nobody.

        Args:
            gap: images by which the part is to come nearer to their own one.
        """
        best: tuple[float, int, int] | None = None
        for g in rows.tolist():
            back, worth = self._exchanges(g, part, gap)
            if len(back) and (best is None or worth.min() < best[0]):
                best = float(worth.min()), g, int(back[worth.argmin()])
        if best is None:
            return False
        _, g, h = best
        home = int(self.home_G[g])
        self._move(g, part)
        if h >= 0:
            self._move(h, home)
        return True

    def _exchanges(self, g: int, part: int, gap: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Whom a part can give back for patient g, -1 for nobody, and the change of the chi-square
        distance from equal distribution that comes of it.
        """
        home, sizes_G = int(self.home_G[g]), self.c_GF[:, -1]
        rows = np.flatnonzero(self.home_G == part)
        rows = rows[~(self.shows_GL[rows] & self._alone(part) & ~self.shows_GL[g]).any(1)]
        aim = sizes_G[g] - (gap or 0) / 2
        rows = np.append(rows[np.argsort(np.abs(sizes_G[rows] - aim), kind="stable")][:LOOKED], -1)
        nobody = rows[:, None] < 0
        shows_PL = np.where(nobody, False, self.shows_GL[rows])
        change_PF = self.c_GF[g] - np.where(nobody, 0.0, self.c_GF[rows])
        size_PS = np.repeat(self.n_SF[None, :, -1], len(rows), axis=0)
        size_PS[:, part] += change_PF[:, -1]
        size_PS[:, home] -= change_PF[:, -1]
        fair = ~(self.shows_GL[g] & self._alone(home) & ~shows_PL).any(1) & (size_PS > 0).all(1)
        if gap is not None:
            fair &= (change_PF[:, -1] > 0) & (change_PF[:, -1] < gap)
        else:  # the part with the largest share stays the largest
            largest, before_S = self.shares_S.argmax(), self.n_SF[:, -1]
            ahead = max(0.0, before_S.max() - before_S[largest])
            fair &= size_PS.max(1) - size_PS[:, largest] <= ahead
        rows, change_PF = rows[fair], change_PF[fair]
        worth = self._chi(self.n_SF[part] + change_PF, part) - self._chi(self.n_SF[part], part)
        worth = worth + self._chi(self.n_SF[home] - change_PF, home)
        return rows, worth - self._chi(self.n_SF[home], home)

    def _alone(self, part: int) -> np.ndarray:
        """(L,) bool: labels that are needed and that one patient of a part alone shows."""
        return self.needed_L & (self.patients_SL[part] == 1)

    def _chi(self, n_PF: np.ndarray, part: int) -> np.ndarray:
        want_F = self.want_SF[part]
        return np.asarray(((n_PF - want_F) ** 2 / want_F).sum(-1))

    def _move(self, g: int, part: int) -> None:
        home = self.home_G[g]
        self.n_SF[home] -= self.c_GF[g]
        self.n_SF[part] += self.c_GF[g]
        self.patients_SL[home] -= self.shows_GL[g]
        self.patients_SL[part] += self.shows_GL[g]
        self.home_G[g] = part
