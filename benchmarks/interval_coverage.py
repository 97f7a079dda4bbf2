"""How often do the printed 95 % intervals hold the truth, over few patients and rare classes?

    python benchmarks/interval_coverage.py [--quick] [--out ckpt/interval-coverage]

Patients with unequally many images (1 to 20, 4 on average) are made up, whose scores are alike
within a patient; the truth is known by formula. Each cohort is resampled as the package does it and
goes through its rule for intervals. Printed are the coverage among the intervals that are printed,
their mean width, and the share of cohorts whose interval is withheld. A patient with a class has
only images of it, which is the hardest case, except in the rows called "mixed".

Finished rows are kept in OUT, and the same command goes on behind them. A minute or two on
one core; --quick takes twenty seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pairs import TOY, console
from scipy.stats import norm

from vilmedic_ssl.metrics import DIFFERENCE, UNIT, Evidence, Resampled, Support
from vilmedic_ssl.metrics.bootstrap import counts_of_draws

PATIENTS = 2, 4, 10, 50
MOST = 20  # images of a patient


@dataclass
class Cohort:
    """N images of G patients, named 0 to G - 1, and how often each is in each draw.

    Attributes:
        of_N: patient of each image.  counts_RG: of the draws.
    """

    of_N: np.ndarray
    counts_RG: np.ndarray
    rng: np.random.Generator

    @classmethod
    def made(cls, patients: int, draws: int, seed: int) -> Cohort:
        rng = np.random.default_rng(seed)
        size_G = np.minimum(rng.geometric(0.25, size=patients), MOST)
        of_N = np.repeat(np.arange(patients), size_G)
        return cls(of_N, counts_of_draws(patients, draws, seed), rng)

    def alike(self, share: float) -> np.ndarray:
        """(N,) standard normal noise, of which a share of the variance is the patient's."""
        own_G = self.rng.normal(size=self.counts_RG.shape[1])
        rest_N = self.rng.normal(size=len(self.of_N))
        return own_G[self.of_N] * share**0.5 + rest_N * (1 - share) ** 0.5

    def summed(self, x_N: np.ndarray) -> np.ndarray:
        """(1 + R,): the sum over the sample, then over each draw."""
        x_G = np.bincount(self.of_N, x_N, minlength=self.counts_RG.shape[1])
        return np.concatenate([[x_G.sum()], self.counts_RG @ x_G])

    def shares(self, right_N: np.ndarray, among_N: np.ndarray) -> np.ndarray:
        """(1 + R,): share of right images among some; nan where there are none."""
        with np.errstate(invalid="ignore"):
            return self.summed(right_N * among_N) / self.summed(among_N)

    def auroc(self, y_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """(1 + R,): as `metrics.auroc`, nan where it is undefined."""
        patients = self.counts_RG.shape[1]
        above = score_N[y_N][:, None] > score_N[~y_N][None]  # normal scores: no two are equal
        won_GG = np.zeros((patients, patients))
        np.add.at(won_GG, (self.of_N[y_N][:, None], self.of_N[~y_N][None]), above)
        all_RG = np.concatenate([np.ones((1, patients)), self.counts_RG])
        pairs = self.summed(y_N.astype(float)) * self.summed((~y_N).astype(float))
        with np.errstate(invalid="ignore"):
            return ((all_RG @ won_GG) * all_RG).sum(axis=1) / pairs

    def labels(self, shares: Sequence[float], *, mixed: bool = False) -> np.ndarray:
        """(N,) classes, of each patient or, mixed, of each image."""
        size = len(self.of_N) if mixed else self.counts_RG.shape[1]
        c = self.rng.choice(len(shares), p=shares, size=size)
        return c if mixed else c[self.of_N]


Case = Callable[[Cohort], tuple[np.ndarray, Support, tuple[float, float], float]]
"""cohort -> values (1 + R,), what they rest on, their limits, the truth"""


def accuracy(cohort: Cohort, p: float, alike: float) -> tuple:
    right_N = cohort.alike(alike) < norm.ppf(p)
    everyone = np.ones(len(right_N))
    return cohort.shares(right_N, everyone), Support.of([everyone > 0], cohort.of_N), UNIT, p


def accuracy_difference(cohort: Cohort, p: float, gain: float, alike: float) -> tuple:
    """Of two models that go wrong on much the same images."""
    own, other = cohort.alike(alike), cohort.alike(alike)
    better = own < norm.ppf(p + gain)
    worse = 0.8 * own + 0.6 * other < norm.ppf(p)
    everyone = np.ones(len(own))
    values = cohort.shares(better.astype(float) - worse, everyone)
    return values, Support.of([everyone > 0], cohort.of_N), DIFFERENCE, gain


def balanced(cohort: Cohort, shares: Sequence[float], p: Sequence[float], alike: float) -> tuple:
    c_N = cohort.labels(shares)
    right_N = cohort.alike(alike) < norm.ppf(np.array(p))[c_N]
    each = [cohort.shares(right_N, c_N == c) for c in np.unique(c_N)]
    evidence = Evidence(c_N, len(shares), cohort.of_N)
    there = np.isin(np.arange(len(shares)), c_N)
    return np.mean(each, axis=0), evidence.of_mean(there), UNIT, float(np.array(p)[there].mean())


def one_auroc(
    cohort: Cohort, truth: float, share: float, alike: float, *, mixed: bool = False, gain=0.0
) -> tuple:
    """Of one finding, or with `gain` the difference to a model that is worse by so much."""
    c_N = cohort.labels([1 - share, share], mixed=mixed)
    noise_N, y_N = cohort.alike(alike), c_N == 1
    support = Evidence(c_N, 2, cohort.of_N).of_ranking(1)
    values = cohort.auroc(y_N, distance(truth) * y_N + noise_N)
    if not gain:
        return values, support, UNIT, truth
    other_N = 0.8 * noise_N + 0.6 * cohort.alike(alike)
    values = values - cohort.auroc(y_N, distance(truth - gain) * y_N + other_N)
    return values, support, DIFFERENCE, gain


def mean_auroc(cohort: Cohort, truth: float, shares: Sequence[float], alike: float) -> tuple:
    """Of classes, each against the rest."""
    c_N = cohort.labels(shares)
    there = np.unique(c_N) if len(np.unique(c_N)) > 1 else np.arange(0)
    each = [
        cohort.auroc(c_N == c, distance(truth) * (c_N == c) + cohort.alike(alike)) for c in there
    ]
    support = Evidence(c_N, len(shares), cohort.of_N).of_mean(
        np.isin(np.arange(len(shares)), there)
    )
    values = np.mean(each, axis=0) if each else np.full(1 + len(cohort.counts_RG), np.nan)
    return values, support, UNIT, truth


def distance(auroc: float) -> float:
    """Between the means of two normal distributions of variance 1 with this AUROC."""
    return float(norm.ppf(auroc) * 2**0.5)


SIX = [1 / 6] * 6
CASES: dict[str, Case] = {
    "accuracy 0.5": partial(accuracy, p=0.5, alike=0.3),
    "accuracy 0.75, images unalike": partial(accuracy, p=0.75, alike=0.05),
    "accuracy 0.75": partial(accuracy, p=0.75, alike=0.3),
    "accuracy 0.75, images alike": partial(accuracy, p=0.75, alike=0.6),
    "accuracy 0.9": partial(accuracy, p=0.9, alike=0.3),
    "accuracy 0.97": partial(accuracy, p=0.97, alike=0.3),
    "balanced accuracy, 3 classes": partial(
        balanced, shares=[1 / 3] * 3, p=[0.9, 0.8, 0.5], alike=0.3
    ),
    "balanced accuracy, rare class (10 %)": partial(
        balanced, shares=[0.6, 0.3, 0.1], p=[0.9, 0.8, 0.5], alike=0.3
    ),
    "balanced accuracy, 6 classes": partial(balanced, shares=SIX, p=[0.7] * 6, alike=0.3),
    "AUROC 0.6, half": partial(one_auroc, truth=0.6, share=0.5, alike=0.3),
    "AUROC 0.8, half": partial(one_auroc, truth=0.8, share=0.5, alike=0.3),
    "AUROC 0.8, mixed": partial(one_auroc, truth=0.8, share=0.3, alike=0.3, mixed=True),
    "AUROC 0.8, rare (10 %)": partial(one_auroc, truth=0.8, share=0.1, alike=0.3),
    "AUROC 0.95, rare (20 %)": partial(one_auroc, truth=0.95, share=0.2, alike=0.3),
    "mean AUROC 0.8, rare classes": partial(
        mean_auroc, truth=0.8, shares=[0.4, 0.3, 0.2, 0.1], alike=0.3
    ),
    "mean AUROC 0.8, 6 classes": partial(mean_auroc, truth=0.8, shares=SIX, alike=0.3),
    "mean AUROC 0.95, 6 classes": partial(mean_auroc, truth=0.95, shares=SIX, alike=0.3),
    "accuracies 0.7 and 0.6": partial(accuracy_difference, p=0.6, gain=0.1, alike=0.3),
    "accuracies 0.9 and 0.88": partial(accuracy_difference, p=0.88, gain=0.02, alike=0.3),
    "AUROCs 0.8 and 0.7": partial(one_auroc, truth=0.8, share=0.3, alike=0.3, gain=0.1),
    "AUROCs 0.95 and 0.93, rare (20 %)": partial(
        one_auroc, truth=0.95, share=0.2, alike=0.3, gain=0.02
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """Of many cohorts: intervals printed, those that hold the truth, and their mean width."""

    cohorts: int
    printed: int
    held: int
    width: float

    @property
    def share(self) -> float:
        return self.held / self.printed if self.printed else float("nan")


def coverage(case: Case, patients: int, *, cohorts: int, draws: int, seed: int = 0) -> Coverage:
    """Make cohorts, resample each, and ask the package for its interval.

    A cohort in which the number itself is undefined counts as withheld.
    """
    held, width = 0, []
    for k in range(cohorts):
        cohort = Cohort.made(patients, draws, seed + 1_000_003 * k)
        values, support, limits, truth = case(cohort)
        found = Resampled(values[0], values[1:], support, np.array(limits), requested=draws)
        low, high = found.interval()
        if np.isfinite(low):
            held += bool(low <= truth <= high)
            width.append(float(high - low))
    return Coverage(cohorts, len(width), held, float(np.mean(width)) if width else 0.0)


def rows(cohorts: int, draws: int, out: Path | None) -> list[tuple[str, int, Coverage]]:
    """All cases by all numbers of patients; those of before are read from `out`."""
    file = None if out is None else out / f"rows_{cohorts}_{draws}.jsonl"
    before = {}
    if file is not None and file.is_file():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        before = {(name, patients): Coverage(**held) for name, patients, held in lines}
    made, bar = [], console.Bar(len(CASES) * len(PATIENTS), desc="coverage", unit="row")
    for name, case in CASES.items():
        for patients in PATIENTS:
            found = before.get((name, patients))
            if found is None:
                found = coverage(case, patients, cohorts=cohorts, draws=draws)
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("a") as stream:
                        stream.write(json.dumps([name, patients, vars(found)]) + "\n")
            made.append((name, patients, found))
            bar.advance()
    bar.close()
    return made


def table(found: list[tuple[str, int, Coverage]]) -> str:
    """Markdown: per case and number of patients coverage, mean width, share withheld."""
    lines = [
        f"| score | {' | '.join(f'{n} patients' for n in PATIENTS)} |",
        "|---|---|---|---|---|",
    ]
    for name in CASES:
        cells = []
        for _, _, one in (row for row in found if row[0] == name):
            withheld = f"{100 * (1 - one.printed / one.cohorts):.0f} % withheld"
            some = f"{100 * one.share:.1f} %, width {one.width:.2f}; {withheld}"
            cells.append("withheld" if one.printed < 0.02 * one.cohorts else some)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("ckpt/interval-coverage"))
    options = parser.parse_args()
    cohorts, draws = (2, 30) if TOY else (100, 200) if options.quick else (300, 300)
    console.result(table(rows(cohorts, draws, None if options.quick or TOY else options.out)))


if __name__ == "__main__":
    main()
