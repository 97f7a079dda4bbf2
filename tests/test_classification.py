"""Plug-ins on class scores: numbers, tables, pictures, and the sentence for every wrong input."""

import csv
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report as sklearn_report

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.ensemblor import Outcome, headline
from vilmedic_ssl.executors.features import Features
from vilmedic_ssl.post_processing import class_counts as counts_module
from vilmedic_ssl.post_processing import classification_report as report_module
from vilmedic_ssl.post_processing import confusion_matrix as confusion_module
from vilmedic_ssl.post_processing import failure_gallery as gallery_module
from vilmedic_ssl.post_processing import tsne_sweep as sweep_module
from vilmedic_ssl.post_processing._reliability import bins_for
from vilmedic_ssl.post_processing._scores import Scored, judge_of, scores_of
from vilmedic_ssl.post_processing.classification import classification
from vilmedic_ssl.post_processing.linear_probe import linear_probe
from vilmedic_ssl.report_scores import _headline

class_counts, report = counts_module.class_counts, report_module.classification_report
confusion_matrix, gallery = confusion_module.confusion_matrix, gallery_module.failure_gallery
NAMES = ["Effusion", "Nodule", "No Finding", "Mass", "Edema", "Fracture"]


@dataclass
class Made:
    """Features, labels and scores of C classes; a tenth of the images unlabelled."""

    classes: int = 3
    findings: bool = False
    scores: bool = True
    sizes: dict = field(default_factory=lambda: {"train": 120, "validate": 45, "test": 60})
    splits: list = field(default_factory=lambda: ["train", "validate", "test"])
    tag: str = "best-1_0"
    seed: int = 0

    def has(self, split):
        return split in self.sizes

    def get(self, split, source="model"):
        n, C = self.sizes[split], self.classes
        rng = np.random.default_rng([len(split), n])
        y = np.arange(n) // 3 % C
        x = np.random.default_rng(7).normal(size=(C, 8))[y] * 2 + rng.normal(size=(n, 8))
        rows = {"encoder": x.astype(np.float32)}
        p = rng.dirichlet(np.ones(C), size=n) + np.eye(C)[y] * 0.6
        if self.findings:
            labels = np.eye(C, dtype=np.float32)[y]
            labels[rng.random(labels.shape) < 0.2] = np.nan
            p = np.clip(p, 0, 1)
        else:
            labels, p = np.where(rng.random(n) < 0.1, -1, y), p / p.sum(1, keepdims=True)
        if self.scores:
            rows["scores"] = p.astype(np.float32)
        ids, patients = (
            [f"{split}/{i}.png" for i in range(n)],
            [f"{split}{i // 3}" for i in range(n)],
        )
        return SimpleNamespace(
            name=split, rows=rows, labels=labels, label_names=NAMES[:C], ids=ids, patients=patients
        )

    dataset = get

    def images(self, split, indices):
        return [np.full((8, 8), i % 255, np.uint8) for i in indices]

    def of_file(self, path):
        return {"encoder": self.get("train").rows["encoder"][:1]}


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file))


# ---------------------------------------------------------------- classification


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_numbers_of_classes_are_the_metrics(classes, tmp_path):
    features = Made(classes)
    found = dict(classification(features, tmp_path, draws=30))
    part = features.get("test")
    y, p = part.labels, part.rows["scores"]
    said = p.argmax(1)
    expected = {
        "accuracy": metrics.accuracy(y, said),
        "balanced_accuracy": metrics.balanced_accuracy(y, said),
        "auroc": metrics.macro(metrics.columns(metrics.auroc, metrics.one_hot(y, classes), p)),
        "brier": metrics.brier(y, p),
        "f1/Nodule": metrics.per_class(metrics.confusion(y, said, classes=classes)).f1[1],
    }
    assert ("test/classification/top5" in found) == (classes > 5)
    for name, value in expected.items():
        triple = found[f"test/classification/{name}"]
        assert triple[0] == pytest.approx(value) and triple[1] <= triple[0] <= triple[2]
    plain = {"ece": metrics.ece(y, p, bins=2), "prevalence": 1 / classes, "prevalence/Nodule": None}
    plain["medmnist/auc"], plain["medmnist/acc"] = metrics.medmnist(
        y, p, "binary-class" if classes == 2 else "multi-class"
    )
    for name, value in plain.items():
        one = found[f"test/classification/{name}"]
        assert isinstance(one, float) and (value is None or one == pytest.approx(value))
    assert not any(name.startswith("train/") for name in found)
    picture = tmp_path / "classification_best-1_0_test_reliability.png"
    assert picture in found.values() and picture.read_bytes()[:4] == b"\x89PNG"


def test_numbers_of_findings_look_at_known_labels_only(tmp_path):
    features = Made(findings=True, splits=["test"])
    found = dict(classification(features, tmp_path, draws=0, save_predictions=False))
    part = features.get("test")
    y, p, known = part.labels, part.rows["scores"], ~np.isnan(part.labels)
    right = [((p[known[:, c], c] > 0.5) == y[known[:, c], c]).mean() for c in range(3)]
    assert found["test/classification/accuracy"] == pytest.approx(np.mean(right))
    assert found["test/classification/medmnist/acc"] == pytest.approx(np.mean(right))
    brier = [((p[known[:, c], c] - y[known[:, c], c]) ** 2).mean() for c in range(3)]
    assert found["test/classification/brier"] == pytest.approx(np.mean(brier))
    assert not list(tmp_path.glob("predictions*"))


@pytest.mark.parametrize(
    "n, bins, expected", [(44, None, 2), (119, None, 5), (999, None, 15), (9, 7, 7)]
)
def test_bins_hold_twenty_images(n, bins, expected):
    y = np.append(np.zeros(n), [-1, np.nan])
    assert bins_for(y, bins) == expected


def test_a_calibration_error_of_few_images_is_warned_of(tmp_path, capsys):
    dict(classification(Made(sizes={"test": 60}, splits=["test"]), tmp_path, draws=0))
    assert "with fewer than 100 the calibration error" in capsys.readouterr().err
    dict(classification(Made(sizes={"test": 300}, splits=["test"]), tmp_path, draws=0))
    assert "calibration" not in capsys.readouterr().err


@pytest.mark.parametrize("findings", [False, True])
def test_predictions_read_back(findings, tmp_path):
    features = Made(findings=findings)
    dict(classification(features, tmp_path, draws=0))
    for split in features.splits:
        part = features.get(split)
        header, *lines = table(tmp_path / f"predictions_{split}_best-1_0.csv")
        told = [f"label/{name}" for name in NAMES[:3]] if findings else ["label"]
        assert header == ["id", "patient", *told, *(f"score/{name}" for name in NAMES[:3])]
        assert [line[0] for line in lines] == part.ids
        scores = np.array([line[-3:] for line in lines], dtype=np.float32)
        assert (scores == part.rows["scores"]).all()
        if findings:
            labels = [[float(v) if v else np.nan for v in line[2:5]] for line in lines]
            np.testing.assert_array_equal(np.array(labels, np.float32), part.labels)
        else:
            names = [NAMES[y] if y >= 0 else "" for y in part.labels]
            assert [line[2] for line in lines] == names


@pytest.mark.parametrize(
    "features, sentence",
    [
        (Made(scores=False), "no class scores, only features; write linear_probe"),
        (Made(splits=["train"]), "nothing to score"),
    ],
)
def test_nothing_to_classify_is_one_sentence(features, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        list(classification(features, tmp_path))


def test_other_classes_than_the_models_are_refused(tmp_path):
    class Other(Made):
        def get(self, split, source="model"):
            part = super().get(split, source)
            part.label_names = NAMES[:2]
            return part

    with pytest.raises(UserError, match="the model knows 3 classes, train has 2"):
        list(classification(Other(), tmp_path))


def test_headline_and_report_need_no_reference_rows(tmp_path):
    outcome = Outcome()
    for name, value in classification(Made(), tmp_path, draws=30):
        outcome.add("classification", name, value)
    told = headline(outcome.results)
    assert "test classification accuracy" in told and "random init" not in told
    page = _headline(outcome.results)
    assert "Classifier" in page and "raw pixels" not in page and "macro F1" in page
    low = outcome.results["test/classification/f1/low"]
    assert f"[{low:.3f}, " in page and "(chance 0.333)" in page
    assert "<td>Nodule</td>" in page and "calibration error (lower is better)" in page


# ---------------------------------------------------------------- whose scores


def test_several_checkpoints_answer_with_their_mean():
    def model(shift):
        out = {"encoder": torch.ones(2, 3) + shift, "scores": torch.full((2, 2), 0.25 + shift)}
        return SimpleNamespace(encode=lambda images: out)

    one = Features._embed(None, [model(0.0)], {"images": None})
    two = Features._embed(None, [model(0.0), model(0.5)], {"images": None})
    assert one["scores"].tolist() == [[0.25, 0.25]] * 2
    assert two["scores"].tolist() == [[0.5, 0.5]] * 2 and two["encoder"].shape == (2, 6)


def test_auto_is_the_model_itself_where_it_can():
    for scores, judge in ((True, "classifier"), (False, "linear_probe")):
        features = Made(scores=scores)
        assert judge_of(features, "test", "auto") == judge
        made = scores_of(features, "test")
        assert (made == scores_of(features, "test", judge)).all() and made.shape == (60, 3)
    with pytest.raises(UserError, match="no class scores"):
        scores_of(Made(scores=False), "test", "classifier")
    with pytest.raises(UserError, match="no train split"):
        scores_of(Made(sizes={"test": 9}), "test", "knn")


@pytest.mark.parametrize("findings", [False, True])
def test_judges_leave_out_what_is_unlabelled_and_are_fitted_once(findings, monkeypatch, tmp_path):
    features = Made(findings=findings)
    train, val, test = (features.get(split) for split in ("train", "validate", "test"))
    a, b = (metrics.labelled(part.labels) for part in (train, val))
    x, y = train.rows["encoder"][a], train.labels[a]
    expected = metrics.linear_probe(
        x, y, val.rows["encoder"][b], val.labels[b], test.rows["encoder"]
    )
    asked = []
    fit = metrics.fit_probe
    monkeypatch.setattr(metrics, "fit_probe", lambda *a, **k: asked.append(1) or fit(*a, **k))
    np.testing.assert_allclose(scores_of(features, "test", "linear_probe"), expected)
    assert scores_of(features, "validate", "linear_probe").shape == (45, 3)
    dict(linear_probe(features, tmp_path, references=(), draws=0))
    assert len(asked) == 1
    votes = metrics.knn_scores(x, y, test.rows["encoder"])
    assert (scores_of(features, "test", "knn") == votes).all()


# ---------------------------------------------------------------- tables and pictures


@pytest.mark.parametrize("by", ["auto", "linear_probe", "knn"])
def test_confusion_of_classes(by, tmp_path):
    features = Made(6)
    found = list(dict(confusion_matrix(features, tmp_path, by=by)).values())
    judge = "classifier" if by == "auto" else by
    path = tmp_path / f"confusion_matrix_{judge}_best-1_0_test.csv"
    assert path in found and path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    header, *lines = table(path)
    counts = np.array([line[1:7] for line in lines], dtype=int)
    said = scores_of(features, "test", by).argmax(1)
    y = features.get("test").labels
    assert header[1:7] == NAMES and (counts == metrics.confusion(y, said, classes=6)).all()
    assert counts.sum() == (y >= 0).sum() < len(y)


def test_confusion_of_findings(tmp_path):
    features = Made(findings=True)
    dict(confusion_matrix(features, tmp_path))
    part = features.get("test")
    _, *lines = table(tmp_path / "confusion_matrix_classifier_best-1_0_test.csv")
    y, found = part.labels[:, 1], part.rows["scores"][:, 1] > 0.5
    cells = [((y == t) & (found == s)).sum() for t in (0, 1) for s in (False, True)]
    assert lines[1] == ["Nodule", *map(str, cells)]
    assert sum(cells) == (~np.isnan(y)).sum()


def test_report_of_classes_reads_as_sklearns(tmp_path):
    part = Made(6, splits=["test"]).get("test")
    known = part.labels >= 0
    y, p = part.labels[known], part.rows["scores"][known]
    lines = report_module.report_lines(part.labels, part.rows["scores"], NAMES)
    for digits in (2, 4):
        expected = sklearn_report(y, p.argmax(1), target_names=NAMES, digits=digits)
        assert report_module.as_text(lines, digits=digits) == expected


def test_report_of_findings_equals_sklearn_where_all_is_known(tmp_path):
    part = Made(findings=True).get("test")
    y, p = np.nan_to_num(part.labels), part.rows["scores"]
    lines = report_module.report_lines(y, p, NAMES[:3])
    expected = sklearn_report(y, p > 0.5, target_names=NAMES[:3], digits=3, zero_division=0)
    samples = expected.splitlines()[-1]  # their fourth mean, over images, we have not
    assert report_module.as_text(lines, digits=3) == expected.replace(f"{samples}\n", "")


def test_report_files(tmp_path):
    found = list(dict(report(Made(), tmp_path)).values())
    assert {path.suffix for path in found} == {".txt", ".csv"} and len(found) == 4
    lines = table(tmp_path / "classification_report_classifier_best-1_0_test.csv")
    assert lines[0] == ["class", "precision", "recall", "f1-score", "support"]
    assert lines[4][:3] == ["accuracy", "", ""]


def test_gallery_of_classes_starts_with_the_worst(tmp_path):
    features = Made()
    found = dict(gallery(features, tmp_path, n=5))
    part = features.get("test")
    y, p = part.labels, part.rows["scores"].astype(float)
    _, *wrong = table(tmp_path / "failure_gallery_classifier_best-1_0_test_wrong.csv")
    _, *near = table(tmp_path / "failure_gallery_classifier_best-1_0_test_uncertain.csv")
    place = [part.ids.index(line[0]) for line in wrong]
    assert all(y[i] >= 0 and p[i].argmax() != y[i] for i in place)
    sure = p.max(1)[place]
    others = p.max(1)[(y >= 0) & (p.argmax(1) != y)]
    assert sure.tolist() == sorted(others, reverse=True)[:5]
    assert wrong[0][1:3] == [NAMES[y[place[0]]], NAMES[p[place[0]].argmax()]]
    gap = np.diff(np.sort(p[y >= 0], axis=1)[:, -2:]).ravel()
    i = part.ids.index(near[0][0])
    assert np.diff(np.sort(p[i])[-2:])[0] == gap.min()
    assert sum(path.suffix == ".png" for path in found.values()) == 4


def test_gallery_of_findings_shows_pairs(tmp_path):
    y = np.array([[1, 0], [np.nan, 1], [0, 1]])
    p = np.array([[0.1, 0.2], [0.9, 0.45], [0.6, 0.95]])
    scored = Scored("test", "classifier", "", y, p, ["a", "b"])
    cases = gallery_module.cases_of_findings(scored, 3)
    told = [(c.row, c.true, c.predicted, round(c.probability, 2)) for c in cases["wrong"]]
    assert told == [(0, "a", "no a", 0.9), (2, "no a", "a", 0.6), (1, "b", "no b", 0.55)]
    assert [c.row for c in cases["uncertain"]] == [1, 2, 0]
    found = dict(gallery(Made(findings=True), tmp_path, n=2, splits=["train"]))
    assert all("train" in path.name for path in found.values())


def test_a_model_without_mistakes_has_no_picture_of_them(tmp_path):
    y = np.array([0, 1])
    scored = Scored("test", "classifier", "", y, np.eye(2), ["a", "b"])
    assert gallery_module.cases_of_classes(scored, 3)["wrong"] == []
    with pytest.raises(ConfigError, match="write 1 or more"):
        list(gallery(Made(), tmp_path, n=0))


@pytest.mark.parametrize("findings", [False, True])
def test_counts_of_every_split(findings, tmp_path):
    features = Made(findings=findings, scores=False)
    dict(class_counts(features, tmp_path))
    assert (tmp_path / "class_counts_best-1_0.png").read_bytes()[:4] == b"\x89PNG"
    _, *lines = table(tmp_path / "class_counts_best-1_0.csv")
    y = features.get("train").labels
    column = y[:, 1] if findings else np.where(y < 0, np.nan, y == 1)
    known = ~np.isnan(column)
    assert lines[1] == ["train", "Nodule", str(int(np.nansum(column))), str(known.sum()), "120"]
    assert len(lines) == 9


def test_a_placed_image_lies_among_its_neighbours(tmp_path):
    rng = np.random.default_rng(0)
    known = np.concatenate([rng.normal(size=(20, 6)) + 9 * np.eye(6)[i] for i in (0, 1)])
    xy = np.concatenate([rng.normal(size=(20, 2)) - 50, rng.normal(size=(20, 2)) + 50])
    placed = sweep_module.put(xy, known, np.eye(6)[:2])
    assert (placed[0] < -40).all() and (placed[1] > 40).all()
    same = sweep_module.put(xy, np.eye(40), np.eye(40)[[3]])
    assert np.linalg.norm(same - xy[3]) < 1e-3


def test_sweep_draws_each_perplexity_once(tmp_path, monkeypatch):
    tried = []

    def cheap(x, *, perplexity, seed):
        tried.append(perplexity)
        return x[:, :2]

    monkeypatch.setattr(sweep_module, "tsne", cheap)
    keys = {"perplexities": [5, 10, 300, 400], "place": "test", "image": "there/new.png"}
    ((caption, path),) = sweep_module.tsne_sweep(Made(), tmp_path, **keys)
    train = Made().get("train")
    assert tried == [5, 10, ((train.labels >= 0).sum() - 1) / 3]
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert "new.png (star) placed by the weighted mean of their 5 nearest" in caption
    with pytest.raises(ConfigError, match="above 0"):
        list(sweep_module.tsne_sweep(Made(), tmp_path, perplexities=[0]))
    with pytest.raises(UserError, match="4 are needed"):
        list(sweep_module.tsne_sweep(Made(sizes={"train": 3}), tmp_path))


def test_an_image_file_has_the_features_it_has_in_the_data(tmp_path):
    from PIL import Image

    from vilmedic_ssl.data.datasets.base import Context
    from vilmedic_ssl.data.datasets.image_folder import ImageFolder
    from vilmedic_ssl.data.transforms import Transform

    rng = np.random.default_rng(0)
    for name in ("a/1.png", "b/2.png", "../train/a/3.png"):
        (tmp_path / "test" / name).parent.mkdir(parents=True)
        pixels = rng.integers(256, size=(20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "test" / name)
    transform = Transform(resize=12, crop=8, load_memory=True)

    def dataset(split):
        return ImageFolder(Context(split), root=str(tmp_path), transform=transform)

    def encode(images):
        return {"encoder": images.flatten(1), "scores": images.flatten(1)[:, :2].softmax(1)}

    model, device = SimpleNamespace(encode=encode), torch.device("cpu")
    keys = {"splits": ["test"], "tag": "t", "seed": 0, "batch_size": 2, "workers": 0}
    features = Features(dataset, [model], lambda: model, device=device, **keys)
    part, one = features.get("test"), features.of_file(tmp_path / "test/b/2.png")
    assert part.rows["scores"].shape == (2, 2) and part.rows["scores"].dtype == np.float32
    assert (one["encoder"][0] == part.rows["encoder"][1]).all()
    assert set(features.get("test", "random_init").rows) == {"encoder", "scores"}
    with pytest.raises(UserError, match="there is no such image"):
        features.of_file(tmp_path / "3.png")
