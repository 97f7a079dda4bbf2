"""Where a paired model looks: numbers, phrases, outlines, sides, pictures."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from results import number, numbers

from vilmedic_ssl import metrics
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.recipes.brain_mr import outlines_of
from vilmedic_ssl.data.recipes.brain_regions import region
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.features import Features
from vilmedic_ssl.post_processing import _sides
from vilmedic_ssl.post_processing._cells import at_view, scaled, smoothed
from vilmedic_ssl.post_processing._ground import MEANS, NUMBERS
from vilmedic_ssl.post_processing._phrases import Words, asked, naming
from vilmedic_ssl.post_processing._word_page import stretch
from vilmedic_ssl.post_processing.grounding import grounding
from vilmedic_ssl.post_processing.word_heatmap import word_heatmap
from vilmedic_ssl.schema import build

SIZE = 32
BRIGHT, DARK = "Bright Spot", "Dark Spot"
TRANSFORM = {"resize": SIZE, "crop": SIZE, "channels": "gray", "mean": [0.5], "std": [0.25]}


# ---------------------------------------------------------------- numbers


def test_miou_is_the_mean_over_thresholds():
    heat = np.array([[0.05, 0.15, 0.25], [0.35, 0.45, 0.9]])
    mask = np.array([[0, 0, 0], [0, 1, 1]])
    # above 0.1 .. 0.5 lie 5, 4, 3, 2 and 1 of six, of the two inside 2, 2, 2, 2 and 1
    assert metrics.miou(heat, mask) == pytest.approx(np.mean([2 / 5, 2 / 4, 2 / 3, 2 / 2, 1 / 2]))
    assert metrics.miou(heat, mask, thresholds=[0.4]) == 1
    assert metrics.miou(np.ones((2, 3)), mask) == pytest.approx(mask.mean())
    assert metrics.miou(-heat, mask) == 0
    assert np.isnan(metrics.miou(heat, np.zeros((2, 3))))
    with pytest.raises(UserError, match="from 0.5 to 9; give cosines"):
        metrics.miou(heat * 10, mask)


def test_what_is_outside_the_crop_does_not_count():
    heat = np.array([[np.nan, 0.2, 0.4], [0.6, 0.3, np.nan]])
    mask = np.array([[1, 0, 1], [1, 0, 0]])  # two parts and one beyond the crop
    known = ~np.isnan(heat)
    for score in (metrics.miou, metrics.grounding_cnr, metrics.pointing_game):
        assert score(heat, mask) == score(heat[known][None], mask[known][None])
    assert metrics.pointing_game(heat, mask) == 1


def test_pointing_with_a_tolerance_and_a_sign_for_the_contrast():
    heat, mask = np.zeros((9, 9)), np.zeros((9, 9), dtype=bool)
    mask[4, 1], heat[4, 5] = True, 1.0
    hits = [metrics.pointing_game(heat, mask, tolerance=t) for t in (0, 3, 4)]
    assert hits == [0, 0, 1]
    heat = np.random.default_rng(0).normal(size=(9, 9)) / 10
    for sign in (1, -1):
        shown = sign * (heat + mask)
        assert metrics.grounding_cnr(shown, mask) > 1
        signed = metrics.grounding_cnr(shown, mask, signed=True)
        assert signed == sign * metrics.grounding_cnr(shown, mask)


def test_maps_are_smoothed_in_shares_of_their_sides():
    spot = np.zeros((1, 15, 15), dtype=np.float32)
    spot[0, 7, 7] = 1
    x = np.arange(15) - 7
    expected = np.exp(-(x**2) / (2 * 1.5**2))
    row = smoothed(spot, 0.1)[0, 7]
    assert np.allclose(row / row.max(), expected, atol=1e-3)
    assert np.array_equal(smoothed(spot, 0), spot)
    even = np.ones((1, 4, 4), dtype=np.float32)
    assert np.allclose(smoothed(even, 0.3), 1)  # nothing leaks over the border
    large = at_view(np.array([[-1.0, 1.0]]), (4, 4))
    assert large.shape == (4, 4) and np.allclose(large[0], [-1, -0.5, 0.5, 1])
    assert np.array_equal(scaled(np.array([[-1.0, 1.0]])), [[0, 1]])
    assert not scaled(np.full((2, 2), 3.0)).any()


# ---------------------------------------------------------------- data


def dataset(folder, **more):
    node = {
        "proto": "Manifest",
        "manifest": str(folder / "manifest.csv"),
        "masks": "masks.csv",
        "labels": [BRIGHT, DARK],
        "transform": TRANSFORM,
        **more,
    }
    return build(node, Context("test"), where="dataset")


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """Films with a bright or a dark spot on one side, patient's left on the picture's right, whose
    masks are maps of labels; every fourth film is lateral.
    """
    folder, rng = tmp_path_factory.mktemp("spots"), np.random.default_rng(0)
    films, masks = [], []
    for i in range(24):
        finding, side = (BRIGHT, DARK)[i % 2], ("left", "right")[i // 2 % 2]
        top, left = rng.integers(2, 22), rng.integers(1, 6) + 17 * (side == "left")
        pixels, values = np.full((SIZE, SIZE), 128, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
        place = slice(top, top + 8), slice(left, left + 8)
        pixels[place], values[place] = (255, 5) if finding == BRIGHT else (0, 7)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        Image.fromarray(values).save(folder / f"m{i}.png")
        film = {"path": f"{i}.png", "patient": f"p{i // 2}", "split": "test"}
        film["view"] = "LATERAL" if i % 4 == 3 else "PA"
        film["report"] = f"No dark stripe. There is a {side} {finding.lower()}. No edema."
        films.append({**film, BRIGHT: int(finding == BRIGHT), DARK: int(finding == DARK)})
        outline = {"path": f"{i}.png", "finding": finding, "side": side, "mask": f"m{i}.png"}
        masks.append({**outline, "values": "5 7"})
    for name, rows in (("manifest", films), ("masks", masks)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_outlines_know_sides_and_values(spots):
    data = dataset(spots)
    assert data.outlined(0) == [(BRIGHT, "left")] and data.outlined(3) == [(DARK, "right")]
    assert data.mask(0, BRIGHT).sum() == 64 and data.mask(0, BRIGHT, "right") is None
    assert torch.equal(data.mask(0, BRIGHT), data.mask(0, BRIGHT, "left"))
    assert data.projections[3] == "LATERAL"
    assert dataset(spots, masks=None).outlined(0) == []


@pytest.mark.parametrize(
    ("cells", "told"), [("middle,5", "side is 'middle'"), ("left,5;7", "values is '5;7'")]
)
def test_outlines_that_say_something_else(spots, tmp_path, cells, told):
    data = dataset(spots)
    data.outlines = tmp_path / "m.csv"
    data.outlines.write_text(f"path,finding,mask,side,values\n0.png,x,m0.png,{cells}\n")
    with pytest.raises(UserError, match=told):
        data.outlined(0)


def test_structures_of_a_brain_slice_by_side():
    seen = {3: region("Insula_L"), 4: region("Insula_R"), 9: region("Vermis_6")}
    rows = outlines_of("a.png", {**seen, 7: region("Cerebelum_3_L"), 8: region("Cerebelum_6_L")})
    told = [(row["finding"], row["side"], row["values"]) for row in rows]
    cerebellum = ("Cerebellum", "left", "7 8")
    insula = [("Insula", "left", "3"), ("Insula", "right", "4")]
    assert told == [*insula, cerebellum, ("Cerebellar Vermis", "", "9")]
    assert rows[0]["path"] == "images/a.png" and rows[0]["mask"] == "masks/a.png"


# ---------------------------------------------------------------- phrases


def test_phrases_are_templates():
    words = Words("{side} {finding}", [BRIGHT, DARK], "grounding.phrases")
    assert words.of(BRIGHT, "left") == "left bright spot" and words.of(BRIGHT) == "bright spot"
    words = Words({DARK: "shadow", BRIGHT: None}, [BRIGHT, DARK], "grounding.phrases")
    assert words.of(DARK, "left") == "shadow" and not words.sided(DARK)
    assert list(words.templates) == [DARK]
    words = Words({DARK: "shadow"}, [BRIGHT, DARK], "grounding.phrases")
    assert words.of(BRIGHT, "left") == "left bright spot"
    words = Words("{finding} del lado {side}", ["Derrame"], "k", "es")
    assert words.of("Derrame", "right") == "derrame del lado derecho"
    with pytest.raises(ConfigError, match="grounding.phrases: no finding 'Dark' has an outline"):
        Words({"Dark": "shadow"}, [BRIGHT, DARK], "grounding.phrases")
    with pytest.raises(ConfigError, match="braces are for"):
        Words("{name}", [BRIGHT], "grounding.phrases")


def test_the_sentence_that_names_a_finding():
    report = "No pneumothorax. Small left pleural effusion. The heart is large."
    assert naming(report, "pleural effusion", "en") == ["Small left pleural effusion."]
    assert naming(report, "pneumothorax", "en") == []
    both = "Small left effusion. Large right effusion."
    assert naming(both, "effusion", "en", "right")[0] == "Large right effusion."


def test_asked_are_true_findings_in_the_words_wanted(spots):
    features = made(spots)
    words = Words("{side} {finding}", [BRIGHT, DARK], "k")
    found = asked(features, "test", words, most=1000, reports=None)
    assert len(found) == 24 and found[0].phrase == "left bright spot"
    assert found[0].other == "right bright spot" and found[0].inside.sum() == 64
    assert len(asked(features, "test", words, most=5, reports=None)) == 5
    plain = asked(features, "test", Words("a {finding}", [DARK], "k"), most=1000, reports=None)
    assert len(plain) == 12 and plain[0].phrase == "a dark spot" and not plain[0].other
    reports = features.dataset("test").reports
    said = asked(features, "test", words, most=1000, reports=reports)
    assert said[0].phrase == "There is a left bright spot."
    assert said[0].other == "There is a right bright spot."


# ---------------------------------------------------------------- plug-ins


class Oracle:
    """Finds what is bright or dark, twice as hot on the side that the text names."""

    sided = True

    def __init__(self, features):
        self.features = features

    def reports(self, split):
        return self.features.dataset(split).reports

    def heat(self, split, indices, texts):
        return self.heat_of(self.features.inputs(split, list(indices)), texts)

    def heat_of(self, images, texts):
        small = torch.nn.functional.avg_pool2d(images, 2)[:, 0] / 2  # in [-1, 1]
        heat = []
        for spot, text in zip(small, texts, strict=True):
            spot = (spot if "bright" in text else -spot).clamp_min(0)
            weight = torch.ones_like(spot)
            half = slice(0, 8) if "left" in text else slice(8, 16)  # the other one
            if self.sided and ("left" in text or "right" in text):
                weight[:, half] = 0.25
                spot = spot + 0.01
            heat.append((spot * weight).clamp_max(1))
        return torch.stack(heat).numpy()

    def word_heat(self, split, index, text):
        words = ["[CLS]", *text.replace(".", " .").split(), "[SEP]"]
        return words, self.heat(split, [index] * len(words), words)


class Blind(Oracle):
    """Does not hear the side, and takes every finding for a bright one."""

    def heat_of(self, images, texts):
        return np.abs(torch.nn.functional.avg_pool2d(images, 2)[:, 0].numpy() / 2)


def made(folder, **more):
    return Features(
        lambda split: dataset(folder, **more),
        [torch.nn.Identity()],
        torch.nn.Identity,
        splits=["test"],
        tag="best-1_0",
        seed=0,
        batch_size=8,
        workers=0,
        device=torch.device("cpu"),
    )


@pytest.fixture
def reading(monkeypatch):
    """reader_of gives the first class for the model and the second for the untrained network."""

    def install(trained=Oracle, untrained=Blind):
        module = ModuleType("vilmedic_ssl.executors.pairs")
        module.reader_of = lambda features, plugin, source="model": (
            trained if source == "model" else untrained
        )(features)
        monkeypatch.setitem(sys.modules, "vilmedic_ssl.executors.pairs", module)

    return install


def test_a_model_that_looks_where_it_is_told(spots, tmp_path, reading):
    reading()
    found = dict(grounding(made(spots), tmp_path, draws=30, sigma=0))
    value = {k.removeprefix("test/grounding/"): number(found[k]) for k in numbers(found)}
    assert set(NUMBERS) <= set(value)
    assert value["chance"] == pytest.approx(64 / SIZE**2)
    assert value["pointing_game"] == value["pointing_game/Dark Spot"] == 1
    assert value["energy_inside"] > 0.7 and value["miou"] > 0.7 and value["cnr"] > 3
    assert value["cnr"] == value["signed_cnr"] and value["no_query/miou"] < 0.1
    for name in MEANS:
        assert value[f"minus_other_place/{name}"] == pytest.approx(
            value[name] - value[f"other_place/{name}"]
        )
    assert value["side/right_way"] == 1 and value["side/shift"] > 0.1
    assert value["side/mirror_correlation"] == pytest.approx(1)
    assert value["side/mirror_same_words"] < 0.999
    assert value["random_init/side/right_way"] == 0.5 and value["random_init/side/shift"] == 0
    assert value["random_init/side/mirror_same_words"] == pytest.approx(1)
    _, low, high = found["test/grounding/cnr"]
    assert low < value["cnr"] < high


def test_a_model_that_does_not_hear_the_query(spots, tmp_path, reading):
    reading(Blind)
    found = dict(grounding(made(spots), tmp_path, draws=0))
    for name in MEANS:
        assert found[f"test/grounding/minus_no_query/{name}"] == pytest.approx(0, abs=1e-6)
        assert found[f"test/grounding/minus_random_init/{name}"] == 0
    assert found["test/grounding/side/right_way"] == 0.5


def test_the_other_half_and_phrases_without_a_side(spots, tmp_path, reading):
    reading()
    found = dict(grounding(made(spots), tmp_path, draws=0, left_is="left"))
    assert found["test/grounding/side/right_way"] == 0
    found = dict(grounding(made(spots), tmp_path, draws=0, phrases={DARK: "dark", BRIGHT: None}))
    assert "test/grounding/cnr/Dark Spot" in found and "test/grounding/cnr/Bright Spot" not in found
    assert not any("/side/" in name or "no_query" in name for name in found)
    found = dict(grounding(made(spots), tmp_path, draws=0, of_report=True))
    assert found["test/grounding/side/right_way"] == 1


def test_lateral_films_are_not_in_the_side_test(spots):
    features = made(spots)
    words = Words("{side} {finding}", [BRIGHT, DARK], "k")
    found = asked(features, "test", words, most=1000, reports=None)
    data = features.dataset("test")
    assert len(_sides.sided(data, found, ["lateral"])) == 18
    assert len(_sides.sided(data, [replace(item, other="") for item in found], [])) == 0
    left = _sides.half((2, 3), right=False)
    assert np.array_equal(left, [[1, 0.5, 0]] * 2)


def test_a_model_without_text_is_told_so(spots, tmp_path):
    for plugin in (grounding, word_heatmap):
        with pytest.raises(UserError, match=f"{plugin.__name__}: Identity reads no reports"):
            dict(plugin(made(spots), tmp_path))


def test_mistakes_are_told(spots, tmp_path, reading):
    reading()
    with pytest.raises(UserError, match="grounding: the test split has no outlines"):
        dict(grounding(made(spots, masks=None), tmp_path))
    with pytest.raises(ConfigError, match="grounding: measured 0"):
        dict(grounding(made(spots), tmp_path, measured=0))
    with pytest.raises(ConfigError, match="word_heatmap: images 0"):
        dict(word_heatmap(made(spots), tmp_path, images=0))
    with pytest.raises(ConfigError, match="word_heatmap.named: no finding 'x'"):
        dict(word_heatmap(made(spots), tmp_path, named={"x": "y"}))


def test_a_page_of_phrases_and_words(spots, tmp_path, reading):
    reading()
    found = dict(word_heatmap(made(spots), tmp_path, images=2, words=4))
    (path,) = found.values()
    assert path.name == "word_heatmap_best-1_0_test.png" and "blue" in next(iter(found))
    assert Image.open(path).width > 800
    found = dict(word_heatmap(made(spots, masks=None), tmp_path, images=1, phrases=["a spot"]))
    assert "blue" not in next(iter(found))


def test_the_stretch_of_words_around_a_finding():
    words = ["[CLS]", "There", "is", "a", "small", "left", "effusion", ".", "</s>"]
    assert stretch(words, "effusion", 3) == [4, 5, 6]
    assert stretch(words, "effusion", 9) == [1, 2, 3, 4, 5, 6]
    assert stretch(words, "nothing like it", 2) == [1, 2]


def test_names_are_those_of_grad_cam():
    from vilmedic_ssl.post_processing import _inside

    same = {"cnr", "miou_scaled", "pointing_game", "energy_inside"}
    assert same <= set(_inside.MEANS) and same <= set(MEANS) and "chance" in NUMBERS
