"""Transforms, loader and splits: every sample once, the same one every time."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from vilmedic_ssl.data.compose import compose
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.manifest import Manifest
from vilmedic_ssl.data.loader import (
    EpochBatches,
    Loader,
    batches_of,
    sample_seed,
    share,
    steps_of,
)
from vilmedic_ssl.data.presets import preset
from vilmedic_ssl.data.splits import FRACTIONS, assign, split_patients
from vilmedic_ssl.data.transforms import Pipeline, Transform
from vilmedic_ssl.errors import ConfigError, UserError

SPLITS = ("train", "validate", "test")


# ---- transforms ----------------------------------------------------------------------------------


def gradient(channels: int = 1, side: int = 40) -> torch.Tensor:
    plane = torch.linspace(0, 1, side * side).reshape(1, side, side)
    return plane.repeat(channels, 1, 1).contiguous()


@pytest.mark.parametrize("name", ["simclr", "simclr-natural", "convirt"])
@pytest.mark.parametrize("channels", ["gray", "rgb"])
def test_presets(name, channels):
    transform = Transform(resize=36, crop=32, train=name, views=2)
    pipeline = Pipeline(transform, channels=channels, random=True)
    count = 1 if channels == "gray" else 3
    image = pipeline.prepare(gradient(count))
    views = pipeline(image, seed=1)
    assert views.shape == (2, count, 32, 32) and torch.isfinite(views).all()
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views, pipeline(image, seed=1))
    assert not torch.equal(views, pipeline(image, seed=2))


def test_the_preset_for_reports_does_not_mirror():
    assert "Flip" not in str(preset("convirt", 224)) and "Flip" in str(preset("simclr", 224))
    with pytest.raises(ConfigError, match="no transform preset 'simcrl'; did you mean 'simclr'"):
        preset("simcrl", 224)


def test_defaults_crop_pad_and_flip():
    pipeline = Pipeline(Transform(resize=20, crop=32, views=3), channels="gray", random=True)
    assert pipeline(pipeline.prepare(gradient()), 0).shape == (3, 1, 32, 32)
    still = Pipeline(Transform(resize=40, crop=[24, 32]), channels="gray", random=False)
    assert still(still.prepare(gradient()), 0).shape == (1, 24, 32)


def test_the_evaluation_view_is_one_and_deterministic():
    pipeline = Pipeline(Transform(resize=40, crop=32, views=2), channels="gray", random=False)
    image = pipeline.prepare(gradient())
    assert torch.equal(pipeline(image, 1), pipeline(image, 2)) and pipeline(image, 1).dim() == 3


def test_normalisation():
    keys: dict[str, Any] = {"resize": 8, "crop": 8, "mean": [0.5], "std": [0.25]}
    pipeline = Pipeline(Transform(**keys), channels="gray", random=False)
    assert torch.allclose(pipeline(torch.full((1, 8, 8), 0.75), 0), torch.ones(1, 8, 8))
    for wrong in ({"mean": [0.5, 0.5]}, {"std": [0.0]}, {"std": [0.1, 0.1]}, {"std": [-1.0]}):
        with pytest.raises(ConfigError, match=r"dataset\.transform\.mean"):
            Pipeline(Transform(**{**keys, **wrong}), channels="gray", random=False)


def test_randomness_leaves_the_global_generators_alone():
    pipeline = Pipeline(Transform(train="simclr", views=2), channels="gray", random=True)
    image = pipeline.prepare(gradient(side=64))
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    pipeline(image, 3)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_nested_lists():
    blur = {"GaussianBlur": {"kernel_size": 3, "sigma": [0.1, 1.0]}}
    items = [
        {"RandomApply": {"p": 0.5, "transforms": [blur, {"RandomChoice": {"transforms": [blur]}}]}},
        "RandomHorizontalFlip",
        {"RandomRotation": {"degrees": 5}},
    ]
    assert compose(items, "t")(gradient()).shape == (1, 40, 40)
    assert torch.equal(compose([], "t")(gradient()), gradient())


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["RandomHorizontalFlop"], r"t\.0: there is no transform .*'RandomHorizontalFlip'"),
        ([{"Resize": {"siz": 3}}], r"t\.0\.Resize\.siz: there is no such argument; .*'size'"),
        (
            [{"RandomApply": {"transforms": ["Nope"]}}],
            r"t\.0\.RandomApply\.transforms\.0: .*'Nope'",
        ),
        ([{"Resize": {}}], r"t\.0\.Resize: "),
        ([{"ColorJitter": {"brightness": -1}}], r"t\.0\.ColorJitter: "),
        ([{"a": {}, "b": {}}], r"t\.0: expected one transform"),
        ([3], r"t\.0: expected one transform"),
        ([{"Lambda": {"lambda": "x"}}], r"t\.0"),
        (["__import__('os')"], r"t\.0: there is no transform"),
    ],
)
def test_wrong_lists(items, words):
    with pytest.raises(ConfigError, match=words):
        compose(items, "t")


@pytest.mark.parametrize(
    "items", ["simclr", ["RandomHorizontalFlip"], [{"ColorJitter": {}}], ["TrivialAugmentWide"]]
)
def test_evaluation_must_be_deterministic_already_in_training(items):
    for augment in (True, False):
        with pytest.raises(ConfigError, match=r"dataset\.transform\.evaluate: .*deterministic"):
            Pipeline(Transform(evaluate=items), channels="gray", random=augment)


@pytest.mark.parametrize(
    "step",
    [
        {"RandomCrop": {"size": 100}},
        {"GaussianBlur": {"kernel_size": 201}},
        {"CenterCrop": {"size": -5}},
        {"FiveCrop": {"size": 8}},
        {"Normalize": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}},
        "ToPILImage",
    ],
    ids=str,
)
def test_a_step_that_cannot_work_is_found_when_it_is_built(step):
    name = step if isinstance(step, str) else next(iter(step))
    keys = Transform(resize=32, crop=16, train=["RandomHorizontalFlip", step])
    with pytest.raises(ConfigError, match=rf"train\.1\.{name}: .*32 x 32"):
        Pipeline(keys, channels="gray", random=True)
    with pytest.raises(ConfigError, match=r"evaluate"):
        Pipeline(Transform(resize=32, evaluate=[step]), channels="gray", random=True)


# ---- loader --------------------------------------------------------------------------------------


def test_every_index_exactly_once_over_any_number_of_ranks():
    draw = random.Random(0)
    for _ in range(400):
        n, size = draw.randrange(1, 60), draw.randrange(1, 20)
        ranks = draw.randrange(1, min(size, n) + 1)
        seed, epoch, drop_last = draw.randrange(99), draw.randrange(1, 5), draw.random() < 0.5
        keys = {"batch_size": size, "seed": seed, "shuffle": True, "drop_last": drop_last}
        samplers = [EpochBatches(n, **keys, rank=r, ranks=ranks) for r in range(ranks)]
        alone = EpochBatches(n, **keys).batches(epoch)
        batches = samplers[0].batches(epoch)
        assert len(samplers[0]) == len(batches)
        assert len(batches) == steps_of(n, size, ranks=ranks, drop_last=drop_last)
        for cut in (batches, EpochBatches(n, **{**keys, "shuffle": False}).batches(epoch)):
            assert min(map(len, cut)) > 1 or 1 in (n, size)
        parts = []
        for sampler in samplers:
            sampler.epoch = epoch
            parts.append(list(sampler))
        for i, batch in enumerate(batches):
            shares = [part[i] for part in parts]
            assert [index for part in shares for index, _ in part] == batch
            lengths = [len(part) for part in shares]
            assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
        seen = sorted(index for batch in batches for index in batch)
        if drop_last and n >= size:
            assert len(seen) == len(set(seen)) == n - n % size and batches == alone
        else:
            assert seen == list(range(n))


def test_shares_of_a_batch():
    assert [share(list(range(7)), r, 3) for r in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert batches_of(list(range(9)), 4, ranks=2, drop_last=False) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7, 8],
    ]
    assert [len(b) for b in batches_of(list(range(17)), 8, ranks=1, drop_last=False)] == [8, 9]
    assert [len(b) for b in batches_of(list(range(17)), 8, ranks=1, drop_last=True)] == [8, 8]


def test_epochs_differ_and_repeat():
    def epoch(number: int, seed: int = 0) -> list:
        sampler = EpochBatches(50, batch_size=7, seed=seed, shuffle=True)
        sampler.epoch = number
        return list(sampler)

    assert epoch(1) == epoch(1) and epoch(1) != epoch(2) and epoch(1) != epoch(1, seed=1)
    seeds = {s for number in (1, 2, 3) for batch in epoch(number) for _, s in batch}
    assert len(seeds) == 150 and all(0 <= s < 2**63 for s in seeds)
    assert sample_seed(0, 1, 11) != sample_seed(0, 11, 1)
    still = EpochBatches(50, batch_size=7, seed=0, shuffle=False)
    still.epoch = 4
    fourth = list(still)
    still.epoch = 9
    assert fourth == list(still) and [i for b in fourth for i, _ in b] == list(range(50))


def balanced(classes: list[int], **keys: Any) -> EpochBatches:
    n, several = len(classes), np.array(classes)
    return EpochBatches(n, **{"batch_size": 7, "seed": 0, "shuffle": True, **keys}, classes=several)


def test_balanced_draws_every_class_equally_often():
    draw = random.Random(0)
    for _ in range(200):
        n, kinds = draw.randrange(1, 60), draw.randrange(1, 6)
        classes = [min(draw.randrange(kinds), draw.randrange(kinds)) for _ in range(n)]
        sampler = balanced(classes, seed=draw.randrange(99))
        sampler.epoch = draw.randrange(1, 9)
        drawn = [pair for batch in sampler for pair in batch]
        assert len(drawn) == n and len({seed for _, seed in drawn}) == n  # each its own views
        of_class = Counter(classes[index] for index, _ in drawn)
        assert max(of_class.values()) - min(of_class.values()) <= 1
        assert set(of_class) == set(classes)
        of_index = Counter(index for index, _ in drawn)
        for c in of_class:
            often = [of_index[i] for i in range(n) if classes[i] == c]
            assert max(often) - min(often) <= 1


def test_balanced_is_equal_on_several_processes_and_resumes():
    classes = [0] * 40 + [1] * 5 + [2] * 2

    def epoch(number: int, position: int = 0, rank: int = 0, ranks: int = 1) -> list:
        sampler = balanced(classes, batch_size=8, rank=rank, ranks=ranks)
        sampler.epoch, sampler.position = number, position
        return list(sampler)

    alone = epoch(2)
    assert [a + b for a, b in zip(epoch(2, 0, 0, 2), epoch(2, 0, 1, 2), strict=True)] == alone
    assert epoch(2, position=3) == alone[3:] and epoch(3) != alone
    shown = {i for number in range(1, 40) for batch in epoch(number) for i, _ in batch}
    assert shown == set(range(47))  # frequent classes take turns


def test_a_draw_of_its_first_time_has_the_seed_it_has_without_balance():
    plain, even = EpochBatches(9, batch_size=4, seed=5, shuffle=True), balanced([0] * 9, seed=5)
    plain.epoch = even.epoch = 3
    assert sorted(p for b in plain for p in b) == sorted(p for b in even for p in b)


@pytest.fixture(scope="module")
def films(phantom):
    transform = Transform(resize=24, crop=16, views=2, train="simclr")
    path = str(phantom / "manifest.csv")
    return Manifest(Context("train", augment=True), manifest=path, transform=transform)


def read_epoch(films, epoch: int, *, position: int = 0, workers: int = 0, **keys: Any) -> list:
    sampler = EpochBatches(len(films), batch_size=16, seed=3, shuffle=True, **keys)
    loader = Loader(films, sampler, workers=workers, pin_memory=False)
    return list(loader.epoch(epoch, position))


def test_resuming_gives_the_same_tail(films):
    whole = read_epoch(films, 2)
    for position in range(len(whole) + 1):
        tail = read_epoch(films, 2, position=position)
        assert [b["id"] for b in tail] == [b["id"] for b in whole[position:]]
        for one, other in zip(tail, whole[position:], strict=True):
            assert torch.equal(one["images"], other["images"])


def test_workers_change_nothing(films):
    for workers in (1, 2):
        for one, other in zip(
            read_epoch(films, 1), read_epoch(films, 1, workers=workers), strict=True
        ):
            assert one["id"] == other["id"] and torch.equal(one["images"], other["images"])


def test_ranks_change_nothing(films):
    alone = torch.cat([b["images"] for b in read_epoch(films, 1)])
    parts = [read_epoch(films, 1, rank=r, ranks=3) for r in range(3)]
    together = [batch["images"] for batches in zip(*parts, strict=True) for batch in batches]
    assert torch.equal(alone, torch.cat(together))


def test_reading_leaves_the_global_generator_alone(films):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    read_epoch(films, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_message_with_error_in_it_comes_out_whole(films, monkeypatch):
    def broken(self, index, seed):
        raise UserError("a.png: cannot be decoded (SyntaxError: not a PNG file); leave it out")

    monkeypatch.setattr(Manifest, "item", broken)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^a\.png: .*leave it out$"):
            read_epoch(films, 1, workers=workers)


# ---- splits --------------------------------------------------------------------------------------


def test_splits_keep_patients_together_and_come_near_their_shares():
    draw = random.Random(1)
    for _ in range(100):
        groups = [f"p{draw.randrange(60)}" for _ in range(draw.randrange(150, 400))]
        seed = draw.randrange(1000)
        homes = assign(groups, fractions=FRACTIONS, seed=seed)
        where: dict[str, str] = {}
        for group, home in zip(groups, homes, strict=True):
            assert where.setdefault(group, home) == home
        for name, fraction in FRACTIONS.items():
            assert abs(homes.count(name) / len(homes) - fraction) < 0.05
        assert homes == assign(groups, fractions=FRACTIONS, seed=seed)
        order = list(range(len(groups)))
        draw.shuffle(order)
        again = assign([groups[i] for i in order], fractions=FRACTIONS, seed=seed)
        assert again == [homes[i] for i in order]  # the order of rows does not matter


def test_few_patients_still_fill_every_split():
    for n in range(3, 9):
        assert set(assign([f"p{i}" for i in range(n)], fractions=FRACTIONS, seed=n)) == set(SPLITS)
    with pytest.raises(UserError, match="2 patients cannot fill 3 splits"):
        assign(["a", "b"], fractions=FRACTIONS, seed=0)


@pytest.mark.parametrize("fractions", [{}, {"a": 1.5}, {"a": 1.2, "b": -0.2}, {"a": 0.5, "b": 0.4}])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(UserError, match="write positive numbers that sum to 1"):
        assign(["a", "b", "c"], fractions=fractions, seed=0)


def test_split_patients():
    rows = [{"patient": f"p{i % 10}", "path": str(i)} for i in range(30)]
    done = split_patients(rows)
    assert [row["path"] for row in done] == [str(i) for i in range(30)]
    assert "split" not in rows[0] and {row["split"] for row in done} == set(SPLITS)
    with pytest.raises(UserError, match="row 2 has no patient"):
        split_patients([rows[0], {"patient": " ", "path": "x"}])
