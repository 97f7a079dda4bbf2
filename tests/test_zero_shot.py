"""Zero-shot protocols on a made-up model whose text vectors point along the findings they name."""

import csv
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from results import number

from vilmedic_ssl import metrics
from vilmedic_ssl.data.phantom_text import LABELS as PHANTOM
from vilmedic_ssl.data.recipes.brain_regions import LABELS as BRAIN
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import pairs
from vilmedic_ssl.post_processing._prompts import matched, read_prompts
from vilmedic_ssl.post_processing.zero_shot import zero_shot
from vilmedic_ssl.report_pairs import _pairs
from vilmedic_ssl.report_scores import _headline

NAMES = ["Effusion", "Nodule", "Fracture"]
PROMPTS = {
    "templates": ["{}", "There is {}."],
    "negative": ["no {}", "There is no {}."],
    "labels": {"Effusion": "effusion", "Nodule": ["nodule"], "Fracture": "fracture"},
}
SOURCES = {"model": 1.0, "random_init": 0.0}


@dataclass
class Part:
    name: str
    rows: dict
    labels: np.ndarray | None
    label_names: list
    ids: list
    patients: list


@dataclass
class Fake:
    """Images are sums of the findings they show, as axes, in noise; some labels are unknown."""

    kind: str = "multi"
    splits: list = field(default_factory=lambda: ["train", "validate", "test"])
    known: tuple = ("train", "validate", "test")
    flip: float = 1.0
    tag: str = "best-1_0"
    seed: int = 0

    def of_best(self):
        return self

    def has(self, split):
        return split in self.known

    def truth(self, split):
        rng = np.random.default_rng(len(split))
        if self.kind == "single":
            return np.eye(3)[rng.integers(3, size=90)]
        return (rng.random((90, 3)) < [0.5, 0.3, 0.2]).astype(float)

    def get(self, split, source="model"):
        truth = self.truth(split)
        noise = np.random.default_rng([len(split), len(source)]).normal(size=(90, 6))
        x = SOURCES[source] * self.flip * np.pad(3 * (2 * truth - 1), ((0, 0), (0, 3))) + noise
        labels = truth.argmax(1) if self.kind == "single" else truth.copy()
        if self.kind == "multi":
            labels[::9] = np.nan
        rows = {"encoder": x, "visual": x.astype(np.float32)}
        ids = [f"{split}{i}" for i in range(90)]
        labels = None if self.kind == "none" else labels
        return Part(split, rows, labels, NAMES, ids, [f"p{i // 2}" for i in range(90)])


class FakeReader:
    """ "There is no nodule." points against the axis of the nodule; "both" points nowhere else."""

    def __init__(self, features, source):
        self.features, self.source = features, source

    def embed(self, texts):
        rows = np.zeros((len(texts), 6), np.float32)
        for row, text in zip(rows, texts, strict=True):
            sign = -1 if "no " in text.lower() else 1
            for c, name in enumerate(NAMES):
                row[c] = sign * (name.lower() in text.lower())
            row[3] = 0.2 * len(text) / 20  # wording moves a text a little
        return {"text": rows, "linguistic": rows}

    def similarity(self, split, texts):
        image = self.features.get(split, self.source).rows["visual"]
        text = self.embed(texts)["linguistic"]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
        return unit[0] @ unit[1].T


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    monkeypatch.setattr(
        pairs, "reader_of", lambda features, plugin, source="model": FakeReader(features, source)
    )


def run(features, out, **keys):
    return dict(zero_shot(features, out, prompts=PROMPTS, **{"draws": 30, **keys}))


# ---- formulas ------------------------------------------------------------------------------------


def test_two_sides_are_a_softmax_of_cosines():
    a, b = np.array([0.3, -1.0, 1.0]), np.array([0.1, 1.0, -1.0])
    assert metrics.two_sided(a, b) == pytest.approx(np.exp(a) / (np.exp(a) + np.exp(b)))
    assert metrics.two_sided(a, b).max() == pytest.approx(0.8808, abs=1e-4)
    assert metrics.two_sided(a, b, temperature=1e-3)[1:] == pytest.approx([0, 1])
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="above 0"):
            metrics.two_sided(a, b, temperature=bad)
    with pytest.raises(UserError, match="pair up"):
        metrics.two_sided(a, b[:2])


def test_the_temperature_that_made_the_labels_is_found():
    rng = np.random.default_rng(0)
    margin = rng.normal(size=(20000, 2)) / 5
    y = (rng.random(margin.shape) < metrics.two_sided(margin, 0 * margin, temperature=0.07)) * 1.0
    y[::7] = np.nan
    assert metrics.fit_temperature(y, margin) == pytest.approx(0.07, rel=0.05)
    assert metrics.fit_temperature(y, -margin) == pytest.approx(1000, rel=1e-6)
    assert metrics.fit_temperature([1, 0], [1, -1]) < 0.01  # all right: as sure as can be
    with pytest.raises(UserError, match="no label"):
        metrics.fit_temperature([np.nan], [1.0])


def test_standardised_scores_and_sides():
    score = np.random.default_rng(0).normal(size=(50, 3)) * [1, 5, 0] + [0, 9, 2]
    made = metrics.standardise(score)
    assert made.mean(0) == pytest.approx(np.zeros(3)) and made.std(0) == pytest.approx([1, 1, 0])
    said, denied = metrics.right_side([1, 1, 1, 0, np.nan], [2, 1, 0, 0, 9], [1, 1, 1, 1, 0])
    assert (said, denied) == (0.5, 1.0)
    assert np.isnan(metrics.right_side([1.0], [1.0], [0.0])[1])


# ---- manifests -----------------------------------------------------------------------------------


def test_a_manifest_multiplies_templates_and_phrases():
    found = read_prompts(
        {
            "templates": ["{}", "Signs of {}.", "Abnormal."],
            "negative": "no {}",
            "labels": {
                "A": ["x", "y"],
                "B": {"grid": [["", "mild"], ["x", "y"]], "templates": ["{}"], "negative": []},
                "C": {"templates": ["Only this."], "negative": ["Not {}.", "Fine."]},
            },
        },
        "zero_shot",
    )
    assert found.positive["A"] == ["x", "y", "Signs of x.", "Signs of y.", "Abnormal."]
    assert found.positive["B"] == ["x", "y", "mild x", "mild y"]
    assert found.positive["C"] == ["Only this."]
    assert found.negative == {"A": ["no x", "no y"], "B": [], "C": ["Fine."]}
    assert found.texts().count("x") == 1


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({}, "write `labels:`"),
        ({"labels": {}}, "write `labels:`"),
        ({"label": {"A": "x"}}, "did you mean 'labels'"),
        ({"labels": {False: "x"}}, "put quotes around False"),
        ({"labels": {"A": 3}}, "labels.A.phrases: expected text or a list of texts, found 3"),
        ({"labels": {"A": {"phrase": "x"}}}, "did you mean 'phrases'"),
        ({"labels": {"A": []}}, "no prompt comes of this"),
        ({"labels": {"A": {"grid": "x"}}}, "expected a list of lists"),
        ({"labels": {"A": {"grid": [["a"] * 80] * 3}}}, "more than 5000"),
        ({"labels": {"A": "x"}, "templates": ["{finding}"]}, "write {} once"),
        ({"labels": {"A": "x"}, "templates": ["{} {}"]}, "write {} once"),
        ({"labels": {"A": "x"}, "negative": 4}, "negative: expected text"),
        ("config/PROMPTS/phantom.yaml", "there is no config file"),
    ],
)
def test_a_wrong_manifest_is_one_sentence(manifest, sentence):
    with pytest.raises(ConfigError) as error:
        read_prompts(manifest, "zero_shot")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_prompts_must_be_of_labels_of_the_data(capsys):
    found = read_prompts(PROMPTS, "zero_shot")
    assert list(matched(found, ["Nodule", "Effusion"], None, "z").positive) == [
        "Nodule",
        "Effusion",
    ]
    assert "no label Fracture" in capsys.readouterr().err
    for names, keep, sentence in (
        (["Efusion", "Nodule"], None, "did you mean 'Efusion'"),
        (["effusion", "Nodule"], None, "did you mean 'effusion'"),
        (["Other"], None, "none of Effusion, Nodule, Fracture"),
        (["Nodule"], ["Fracture"], "'Fracture' is no label of the data"),
        (["Nodule"], ["Nodul"], "did you mean 'Nodule'"),
    ):
        with pytest.raises(UserError, match=sentence):
            matched(found, names, keep, "z")


@pytest.mark.parametrize(
    ("name", "labels"),
    [("phantom", PHANTOM), ("brain-mr", BRAIN), ("chexpert", PHANTOM), ("chexpert-5x200", PHANTOM)],
)
def test_shipped_manifests_name_labels_of_their_data(name, labels):
    found = read_prompts(f"config/PROMPTS/{name}.yml", "zero_shot")
    assert set(found.positive) <= set(labels)
    assert name != "chexpert" or set(found.positive) == set(PHANTOM)
    assert name != "brain-mr" or set(found.positive) == set(BRAIN)
    two_sided = name in ("phantom", "chexpert")
    assert all(bool(texts) == two_sided for texts in found.negative.values())


# ---- the plug-in ---------------------------------------------------------------------------------


def test_findings_two_sided(tmp_path):
    found = run(Fake(), tmp_path)
    value, low, high = found["test/zero_shot/auroc"]
    other = number(found["test/zero_shot/random_init/auroc"])
    assert value > 0.95 > 0.8 > other and low <= value <= high
    gain = found["test/zero_shot/minus_random_init/auroc"]
    assert gain[0] == pytest.approx(value - other)
    assert {f"test/zero_shot/auroc/{name}" for name in NAMES} <= set(found)
    assert number(found["test/zero_shot/negation/accuracy"]) > 0.9
    assert 0.5 > found["test/zero_shot/ece"] > 0.05
    assert not any(name.startswith("train") for name in found)
    table = json.loads((tmp_path / "zero_shot_best-1_0.json").read_text())
    assert table["test/zero_shot/auroc"]["value"] == pytest.approx(value)


def test_a_probability_by_hand(tmp_path):
    """One prompt a side: exp(s+) / (exp(s+) + exp(s-)) of plain cosines."""
    features = Fake(splits=["test"])
    prompts = {"negative": ["no {}"], "labels": {"Nodule": "nodule"}}
    found = dict(zero_shot(features, tmp_path, prompts=prompts, draws=20, references=()))
    reader = FakeReader(features, "model")
    s = np.exp(reader.similarity("test", ["nodule", "no nodule"]))
    y = features.get("test").labels[:, 1]
    assert number(found["test/zero_shot/auroc"]) == metrics.auroc(y, s[:, 0] / s.sum(1))
    assert found["test/zero_shot/auroc"] == found["test/zero_shot/auroc/Nodule"]
    assert not any("prompt_spread" in name or "random" in name for name in found)


def test_classes_take_the_highest_score(tmp_path):
    found = run(Fake("single"), tmp_path, protocol="class_prompts")
    stem = "test/zero_shot_class_prompts"
    for metric in ("accuracy", "balanced_accuracy", "f1", "auroc"):
        own, other = (number(found[f"{stem}/{row}{metric}"]) for row in ("", "random_init/"))
        assert own > 0.9 > other
    assert f"{stem}/ece" not in found and f"{stem}/negation/accuracy" in found


def test_gloria_is_called_transductive(tmp_path, capsys):
    found = run(Fake("single"), tmp_path, protocol="gloria")
    assert number(found["test/zero_shot_gloria_transductive/accuracy"]) > 0.9
    assert "uses the other images" in capsys.readouterr().err
    # standardising changes no order within a class, the maximum over prompts may
    plain = run(Fake("single"), tmp_path, protocol="class_prompts", reduce="max")
    name = "test/zero_shot_{}/auroc"
    assert found[name.format("gloria_transductive")] == plain[name.format("class_prompts")]


def test_the_wording_is_reported_prompt_by_prompt(tmp_path):
    found = run(Fake(), tmp_path)
    stem = "test/zero_shot/prompt_spread"
    rows = list(csv.DictReader((tmp_path / "zero_shot_best-1_0_prompts.csv").open()))
    mine = [row for row in rows if row["split"] == "test" and row["label"] == "Nodule"]
    assert [(row["prompt"], row["against"]) for row in mine] == [
        ("nodule", "no nodule"),
        ("There is nodule.", "There is no nodule."),
    ]
    auroc = [float(row["auroc"]) for row in mine]
    for kind, value in (("min", min(auroc)), ("max", max(auroc)), ("sd", np.std(auroc))):
        assert found[f"{stem}/{kind}/Nodule"] == pytest.approx(value, abs=1e-6)
    assert found[f"{stem}/mean_embedding"] == pytest.approx(number(found["test/zero_shot/auroc"]))
    assert found[f"{stem}/min"] <= found[f"{stem}/max"]


def test_scores_that_point_the_wrong_way_are_told(tmp_path, capsys):
    found = run(Fake(flip=-1.0), tmp_path)
    assert number(found["test/zero_shot/negation/accuracy"]) < 0.2
    assert "Effusion has an AUROC of 0.0" in capsys.readouterr().err


def test_a_temperature_is_fitted_on_validate(tmp_path):
    cold = run(Fake(), tmp_path, temperature="validate")
    warm = run(Fake(), tmp_path)
    assert 0.05 < cold["validate/zero_shot/temperature"] < 1
    assert cold["test/zero_shot/ece"] < warm["test/zero_shot/ece"]
    assert cold["test/zero_shot/auroc"] == warm["test/zero_shot/auroc"]
    assert "validate/zero_shot/random_init/temperature" in cold


def test_classes_without_prompts_are_left_out(tmp_path, capsys):
    found = run(
        Fake("single"), tmp_path, protocol="class_prompts", labels_keep=["Nodule", "Effusion"]
    )
    other = int(Fake("single").truth("test")[:, 2].sum())
    assert f"{other} images of test are of other classes" in capsys.readouterr().err
    assert "test/zero_shot_class_prompts/auroc/Fracture" not in found


@pytest.mark.parametrize(
    ("features", "keys", "sentence"),
    [
        (Fake("none"), {}, "has no labels"),
        (Fake(splits=["train"]), {}, "only train"),
        (
            Fake(known=("train", "test"), splits=["test"]),
            {"temperature": "validate"},
            "no validate",
        ),
        (Fake(), {"temperature": 0.0}, "above 0"),
        (Fake(), {"protocol": "gloria", "reduce": "mean"}, "maximum over prompts"),
        (Fake(), {"protocol": "class_prompts", "temperature": 2.0}, "gives no probabilities"),
        (Fake(), {"labels_keep": ["Oedema"]}, "no prompts for 'Oedema'"),
        (Fake(), {"prompts": {"labels": {"Nodule": "nodule"}}}, "Nodule has no negative prompts"),
    ],
)
def test_what_does_not_fit_is_refused(features, keys, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        dict(zero_shot(features, tmp_path, **{"prompts": PROMPTS, "draws": 0, **keys}))


def test_the_report_shows_findings_prompts_and_negation(tmp_path):
    results = {}
    for name, value in run(Fake(splits=["test"]), tmp_path).items():
        triple = value if isinstance(value, tuple) else (value,)
        if not isinstance(triple[0], float):
            continue
        results |= dict(zip((name, f"{name}/low", f"{name}/high"), triple, strict=False))
    front, page = _headline(results), _pairs(results)
    assert "Zero-shot" in front and "Effusion" in front
    assert "Prompts, test: zero shot" in page and "worst prompt" in page
    assert "tells it from its negation" in page and "<td>Fracture" in page
