"""New divisions of data: patients stay whole, labels come out even, files are what they say."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.divide import (
    METHODS,
    deviations,
    divide,
    folds,
    nested,
    of_fold,
    pool,
    rows_of,
)
from vilmedic_ssl.data.split_file import SplitFile, read_splits, write_splits
from vilmedic_ssl.errors import UserError

SHARES = {"train": 0.7, "validate": 0.1, "test": 0.2}
QUICK = settings(max_examples=20, deadline=None)
FINDINGS = ["Cardiomegaly", "Edema", "Fracture", "Mass"]


class Toy(MedicalDataset):
    """Samples without pictures; `order` shuffles their rows."""

    def __init__(self, split, rows, *, multi, order=None):
        rows = random.Random(order).sample(rows, len(rows)) if order is not None else rows
        self.split, self.ids = split, [name for name, _, _ in rows]
        self.patients = [patient for _, patient, _ in rows]
        self.label_names = FINDINGS
        shown = [shows for _, _, shows in rows]
        self.labels = np.array(shown, dtype=np.float32 if multi else np.int64)


def toy(patients: int, seed: int, *, multi: bool, order: int | None = None):
    """A skewed cohort of two home splits: rare findings, patients with one to four images who
    tend to show the same.
    """
    draw = np.random.default_rng(seed)
    rows: list = []
    for p in range(patients):
        often = draw.random(4) < (0.5, 0.2, 0.06, 0.02)
        kind = int(draw.choice(4, p=(0.6, 0.25, 0.1, 0.05)))
        for i in range(int(draw.integers(1, 5))):
            shows = [float(o and draw.random() < 0.8) for o in often] if multi else kind
            rows.append((f"p{p}_{i}", f"p{p}", shows))
    half = len(rows) // 2
    parts = {"train": rows[:half], "test": rows[half:]}
    return pool({k: Toy(k, v, multi=multi, order=order) for k, v in parts.items()})


cohorts = st.builds(toy, st.integers(12, 60), st.integers(0, 99), multi=st.booleans())
methods, seeds = st.sampled_from(METHODS), st.integers(0, 9)


def crossing(cohort, splits_N):
    """Patients in more than one split."""
    pairs = set(zip(cohort.groups, splits_N.tolist(), strict=True))
    return len(pairs) - len(set(cohort.groups))


# ---- the division --------------------------------------------------------------------------------


@QUICK
@given(cohorts, methods, seeds)
def test_patients_stay_whole_and_shares_are_near(cohort, method, seed):
    splits_N = divide(cohort, SHARES, method=method, seed=seed)
    assert crossing(cohort, splits_N) == 0
    for name, share in SHARES.items():
        size = (splits_N == name).sum()
        assert size > 0 and abs(size - share * len(cohort)) <= 8  # two patients


@QUICK
@given(st.integers(12, 40), st.integers(0, 99), st.booleans(), methods, seeds)
def test_the_order_of_rows_does_not_matter(patients, seed, multi, method, division):
    first, second = (toy(patients, seed, multi=multi, order=order) for order in (None, 5))
    assert (first.ids, first.groups) == (second.ids, second.groups)
    one = divide(first, SHARES, method=method, seed=division)
    assert (one == divide(second, SHARES, method=method, seed=division)).all()
    levels = [nested(c, one, [0.1, 0.3], seed=division) for c in (first, second)]
    assert levels[0] == levels[1]


@QUICK
@given(cohorts, methods, seeds, st.integers(3, 5))
def test_folds_partition(cohort, method, seed, count):
    fold_N = folds(cohort, count, method=method, seed=seed)
    assert crossing(cohort, fold_N) == 0 and set(fold_N) == set(range(count))
    tested, validated = np.zeros(len(cohort)), np.zeros(len(cohort))
    for i in range(count):
        splits_N = of_fold(fold_N, count, i)
        tested += splits_N == "test"
        validated += splits_N == "validate"
        assert set(splits_N) == {"train", "validate", "test"}
    assert (tested == 1).all() and (validated == 1).all()


@QUICK
@given(cohorts, seeds)
def test_fractions_are_nested_and_hold_every_label_if_they_can(cohort, seed):
    splits_N = divide(cohort, SHARES, method="stratified", seed=seed)
    smallest, absent = nested(cohort, splits_N, [0.2, 0.5], seed=seed)
    file = SplitFile(rows_of(cohort, splits_N, smallest))
    parts = [{r[1] for r in file.of_split("train", f)} for f in (0.2, 0.5, None)]
    assert parts[0] < parts[1] < parts[2]
    for fraction, part in zip((0.2, 0.5), parts, strict=False):
        assert abs(len(part) - fraction * len(parts[2])) <= 8  # two patients
    assert all(row[3] is None for row in file.rows if row[2] != "train")
    inside = np.array([value == 0.2 for value in smallest])
    there_L = cohort.table_NL[splits_N == "train"].sum(0) > 0
    has_L = cohort.table_NL[inside].sum(0) > 0
    missing = [n for n, t, h in zip(cohort.names, there_L, has_L, strict=True) if t and not h]
    assert missing == absent
    level_N = np.array([str(value) for value in smallest])
    assert crossing(cohort.part(splits_N == "train"), level_N[splits_N == "train"]) == 0


def test_a_tiny_fraction_holds_one_patient_and_says_what_it_lacks():
    cohort = toy(60, 1, multi=True)
    splits_N = divide(cohort, SHARES, method="stratified", seed=0)
    smallest, absent = nested(cohort, splits_N, [0.001], seed=0)
    inside = [g for g, value in zip(cohort.groups, smallest, strict=True) if value == 0.001]
    assert len(set(inside)) == 1 and absent


def test_one_image_per_patient_comes_out_exact():
    rows = [(f"i{i}", f"p{i}", 0 if i < 70 else 1 if i < 93 else 2) for i in range(100)]
    cohort = pool({"train": Toy("train", rows, multi=False)})
    splits_N = divide(cohort, SHARES, method="stratified", seed=3)
    for name, share in SHARES.items():
        got = cohort.table_NL[splits_N == name].sum(0)
        assert (np.abs(got - share * cohort.table_NL.sum(0)) < 1).all()


@pytest.mark.parametrize("multi", [False, True])
def test_stratified_is_more_even_than_random_and_balanced_is_never_worse(multi):
    off = {method: [] for method in METHODS}
    for seed in range(8):
        cohort = toy(100, seed, multi=multi)
        for method in METHODS:
            splits_N = divide(cohort, SHARES, method=method, seed=seed)
            off[method].append(deviations(cohort, splits_N).max())
    assert np.median(off["stratified"]) < np.median(off["random"]) / 3
    assert (np.array(off["balanced"]) <= np.array(off["stratified"]) + 1e-9).all()
    assert np.mean(off["balanced"]) < np.mean(off["stratified"])


def test_patients_with_many_images_are_spread():
    cohort = toy(300, 0, multi=True)
    splits_N = divide(cohort, SHARES, method="stratified", seed=0)
    per_patient = [
        len(part) / len(set(part.groups)) for part in (cohort.part(splits_N == s) for s in SHARES)
    ]
    assert max(per_patient) - min(per_patient) < 0.25


def test_what_cannot_be_divided():
    few = toy(2, 0, multi=False)
    with pytest.raises(UserError, match="2 patients cannot fill 3 splits"):
        divide(few, SHARES, method="stratified", seed=0)
    plain_rows = Toy("train", [(f"i{i}", f"p{i}", 0) for i in range(9)], multi=False)
    plain_rows.labels, plain_rows.label_names = None, []
    unlabelled = pool({"train": plain_rows})
    assert crossing(unlabelled, divide(unlabelled, SHARES, method="random", seed=0)) == 0
    with pytest.raises(UserError, match="no labels"):
        divide(unlabelled, SHARES, method="balanced", seed=0)
    twice = Toy("train", [("a", "p", 0), ("a", "q", 0)], multi=False)
    with pytest.raises(UserError, match="stands twice"):
        pool({"train": twice})


# ---- the file ------------------------------------------------------------------------------------


def test_of_many_images_only_the_chosen_method_is_shown(monkeypatch):
    from vilmedic_ssl.experiment import split_verb

    cohort, shares = toy(40, 0, multi=True), {"train": 0.7, "test": 0.3}
    made_N = divide(cohort, shares, method="random", seed=0)
    few = split_verb._evenness(cohort, shares, 0, "random", made_N)
    monkeypatch.setattr(split_verb, "FEW", len(cohort) - 1)
    many = split_verb._evenness(cohort, shares, 0, "random", made_N)
    assert "stratified" in few and "balanced" in few and "random" in many
    assert "stratified" not in many and "balanced" not in many


def some_file(path: Path) -> SplitFile:
    rows = [("train", "a,é", "train", 0.1), ("train", "b", "test", None), ("test", "b", "train", 1)]
    return SplitFile([(*row[:3], row[3] and float(row[3])) for row in rows], {"seed": 0}, path)


def test_a_file_reads_back_with_one_row_per_line(tmp_path):
    file = some_file(tmp_path / "new" / "s.json")
    write_splits(file)
    back = read_splits(file.path)
    assert sorted(back.rows) == sorted(file.rows) and back.hash == file.hash
    assert SplitFile(file.rows[::-1]).hash == file.hash and len(file.hash) == 16
    lines = file.path.read_text(encoding="utf-8").splitlines()
    assert '["train", "a,é", "train", 0.1],' in lines
    assert not list(tmp_path.rglob("*.partial"))


def test_an_edited_or_foreign_file_is_refused(tmp_path):
    file = some_file(tmp_path / "s.json")
    write_splits(file)
    text = file.path.read_text(encoding="utf-8")
    file.path.write_text(text.replace('"b", "test"', '"b", "train"'), encoding="utf-8")
    with pytest.raises(UserError, match="was edited"):
        read_splits(file.path)
    for content in ("", "[]", "{}", '{"format": 9}', text.replace('"b"', "3"), "\udcff"):
        file.path.write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(UserError, match="not a split file"):
            read_splits(file.path)
    with pytest.raises(UserError, match="there is no"):
        read_splits(tmp_path / "none.json")
