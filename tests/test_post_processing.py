"""Plug-ins on made-up features: the numbers, the files, and the sentence for every wrong input."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from results import number, numbers

from vilmedic_ssl import metrics
from vilmedic_ssl.data.patients import tell_apart
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment import judging
from vilmedic_ssl.post_processing import knn as knn_module
from vilmedic_ssl.post_processing import linear_probe as probe_module
from vilmedic_ssl.post_processing import plot_representation as plot_module
from vilmedic_ssl.post_processing._compare import compare
from vilmedic_ssl.post_processing._scores import probe_of, scores_of
from vilmedic_ssl.post_processing.save_representation import save_representation
from vilmedic_ssl.registry import protos
from vilmedic_ssl.schema import schema

ORACLES = Path(__file__).parent / "oracles"
NAMES = ["Effusion", "Nodule", "No Finding"]
STRENGTH = {"model": 1.0, "pixels": 0.4, "random_init": 0.1}
probe, vote, plot = (
    probe_module.linear_probe,
    knn_module.knn,
    plot_module.plot_representation,
)


@dataclass
class Part:
    name: str
    rows: dict
    labels: np.ndarray | None
    label_names: list
    ids: list
    patients: list | None


@dataclass
class FakeFeatures:
    """What the ensemblor hands to plug-ins, with features as good as their source."""

    kind: str = "single"
    sizes: dict = field(default_factory=lambda: {"train": 120, "validate": 45, "test": 60})
    splits: list = field(default_factory=lambda: ["train", "validate", "test"])
    tag: str = "best-1_0"
    seed: int = 0
    asked: list = field(default_factory=list)

    def has(self, split):
        return split in self.sizes

    def get(self, split, source="model"):
        self.asked.append((split, source))
        rows = self.sizes[split]
        rng = np.random.default_rng([len(split), rows])
        y = np.arange(rows) // 3 % 3
        centre = np.random.default_rng(7).normal(size=(3, 8)) * 3
        noise = np.random.default_rng([len(split), len(source)]).normal(size=(rows, 8))
        x = (STRENGTH[source] * centre[y] + noise).astype(np.float32)
        keys = {"encoder": x, "visual": x[:, :4]} if source == "model" else {"encoder": x}
        many = np.eye(3, dtype=np.float32)[y]
        many[rng.random(many.shape) < 0.1] = np.nan
        labels = {"single": y, "multi": many, "none": None}[self.kind]
        ids = [f"{split}/{i}" for i in range(rows)]
        return Part(split, keys, labels, NAMES, ids, [f"{split}{i // 3}" for i in range(rows)])


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("plugin", [probe, vote])
def test_scores_beside_their_references(plugin, kind, tmp_path):
    name = plugin.__name__
    found = dict(plugin(FakeFeatures(kind), tmp_path, draws=50))
    path = found.pop(f"{name}: every number with its interval")
    means = ["accuracy", "balanced_accuracy", "auroc"] if kind == "single" else ["auroc", "auprc"]
    expected = means + [f"auroc/{finding}" for finding in NAMES]
    rows = ["", "random_init/", "pixels/", "minus_random_init/", "minus_pixels/"]
    assert numbers(found) == {
        f"{split}/{name}/{row}{metric}"
        for split in ("validate", "test")
        for row in rows
        for metric in expected
    }
    value, low, high = found[f"test/{name}/auroc"]
    other = found[f"test/{name}/random_init/auroc"][0]
    assert low <= value <= high <= 1 and value > 0.85 > other
    gain = found[f"test/{name}/minus_random_init/auroc"]
    assert gain[0] == pytest.approx(value - other) and 0 < gain[1] < gain[2] <= 1
    assert path == tmp_path / f"{name}_best-1_0.json"
    assert json.loads(path.read_text())[f"test/{name}/auroc"] == pytest.approx(
        {"value": value, "low": low, "high": high}
    )


def test_probe_row_is_the_public_metric(tmp_path):
    features = FakeFeatures(splits=["test"])
    found = dict(probe(features, tmp_path, references=(), draws=20))
    train, val, test = (features.get(s) for s in ("train", "validate", "test"))
    x = [part.rows["encoder"] for part in (train, val, test)]
    p = metrics.linear_probe(x[0], train.labels, x[1], val.labels, x[2])
    expected = metrics.accuracy(test.labels, p.argmax(1))
    assert found["test/linear_probe/accuracy"][0] == expected
    assert not any(name.startswith("validate") for name in found)


def test_another_key_gets_a_name_of_its_own(tmp_path):
    found = dict(vote(FakeFeatures(), tmp_path, key="visual", draws=10))
    assert "test/knn_visual/accuracy" in found and "test/knn_visual/pixels/accuracy" in found


class Validated(FakeFeatures):
    """Validate is there, and with `labels` it has those."""

    def __init__(self, labels=None):
        super().__init__(splits=["train", "test"])
        self.val_y = labels

    def get(self, split, source="model"):
        part = super().get(split, source)
        if split == "validate":
            part = replace(part, labels=None if self.val_y is None else self.val_y(part.labels))
        return part


UNFIT = {
    "no split": (lambda: FakeFeatures(sizes={"train": 120, "test": 60}), "no labelled image"),
    "no labels": (Validated, "no labelled image"),
    "unlabelled": (lambda: Validated(lambda y: np.full_like(y, -1)), "no labelled image"),
    "one class": (lambda: Validated(np.zeros_like), "lacks 2 of train's 3 classes"),
    "two classes": (lambda: Validated(lambda y: y % 2), "lacks 1 of train's 3 classes"),
    "few": (lambda: Validated(lambda y: np.where(np.arange(len(y)) < 9, y, -1)), "has 9 labelled"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_where_validate_cannot_choose_trains_patients_do_in_plugin_and_flow(case, capfd):
    features, told = UNFIT[case][0](), UNFIT[case][1]
    train, test = features.get("train"), features.get("test")
    x, rows = train.rows["encoder"], test.rows["encoder"]
    expected = metrics.linear_probe(x, train.labels, x[:0], [], rows, groups=train.patients)
    assert (probe_of(features, "model", "encoder")(rows) == expected).all()
    said = capfd.readouterr().err
    assert told in said and "cross-validation over train's patients" in said
    taught = SimpleNamespace(**vars(train))
    judged = SimpleNamespace(features=features, split="test")
    assert (judging._fitted(judged, taught, "linear_probe") == expected).all()
    assert told in capfd.readouterr().err
    assert metrics.accuracy(test.labels, expected.argmax(1)) > 0.7


class OfPatients(FakeFeatures):
    """Features that hold the patient and nothing else; some patients stand in two splits."""

    def get(self, split, source="model"):
        part = super().get(split, source)
        patients = [f"p{i // 3}" for i in range(len(part.ids))]
        x = np.random.default_rng(0).normal(size=(len(part.ids) // 3, 8)).repeat(3, axis=0)
        return replace(part, rows={"encoder": x}, patients=self.named(patients))

    def named(self, patients):
        return patients


def test_neighbours_of_the_same_patient_do_not_vote(tmp_path):
    features = OfPatients()
    found = dict(vote(features, tmp_path, references=(), draws=0, k=1))
    assert found["test/knn/accuracy"] < 0.7  # 1.0 where they vote
    train = features.get("train")
    assert metrics.accuracy(train.labels, scores_of(features, "train", "knn").argmax(1)) < 0.7
    judged = SimpleNamespace(features=features, split="test")
    flow = judging._fitted(judged, SimpleNamespace(**vars(train)), "knn")
    assert (flow == scores_of(features, "test", "knn")).all()


@pytest.mark.parametrize("unknown", [None, " ", "nan"])
def test_where_patients_are_unknown_an_image_does_not_vote_for_itself(unknown):
    class Unknown(OfPatients):
        def named(self, patients):
            return unknown and tell_apart([unknown] * len(patients), patients, "patient")

    features = Unknown()
    train = features.get("train")
    score_NC = scores_of(features, "train", "knn")
    x, y = train.rows["encoder"], train.labels
    rest = np.arange(len(y)) != 5
    alone = metrics.knn_scores(x[rest], y[rest], x[5:6])
    np.testing.assert_allclose(score_NC[5], alone[0])


def test_a_finding_with_one_class_is_left_out_and_said(tmp_path, capfd):
    class Rare(FakeFeatures):
        def get(self, split, source="model"):
            part = super().get(split, source)
            if split == "test":
                part.labels[:, 1] = 0
            return part

    found = dict(vote(Rare("multi", splits=["test"]), tmp_path, draws=20))
    assert "test/knn/auroc/Nodule" not in found
    some = [number(found[f"test/knn/auroc/{name}"]) for name in ("Effusion", "No Finding")]
    assert number(found["test/knn/auroc"]) == pytest.approx(np.mean(some))
    assert found["test/knn/auroc/left_out"] == "1 of 3: Nodule (one kind in the split)"
    assert "Nodule cannot be scored on test" in capfd.readouterr().err
    assert "NaN" not in (tmp_path / "knn_best-1_0.json").read_text()


@pytest.mark.parametrize(
    "features, keys, sentence",
    [
        (FakeFeatures("none"), {}, "no labels"),
        (FakeFeatures(sizes={"test": 9}, splits=["test"]), {}, "no train split"),
        (FakeFeatures(splits=["train"]), {}, "nothing|only train"),
        (FakeFeatures(), {"key": "text"}, "no 'text' features"),
    ],
)
@pytest.mark.parametrize("plugin", [probe, vote])
def test_wrong_input_is_one_sentence(plugin, features, keys, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        list(plugin(features, tmp_path, **keys))


def test_scores_may_lack_classes_never_seen_in_training(tmp_path):
    def narrow(source, name, rows):
        return np.stack([rows[:, 0], 0 * rows[:, 0]], axis=1)

    features = FakeFeatures(splits=["test"])
    found = dict(compare(features, tmp_path, "x", narrow, key="encoder", references=[], draws=30))
    y, first = features.get("test").labels, features.get("test").rows["encoder"][:, 0]
    assert number(found["test/x/accuracy"]) == pytest.approx(np.mean(y == (first < 0)))
    each = [metrics.auroc(y == 0, first), 0.5]
    assert number(found["test/x/auroc"]) == pytest.approx(np.mean(each))
    assert "No Finding (not learnt from train)" in found["test/x/auroc/left_out"]


# ---------------------------------------------------------------- representation


def test_selection_equals_the_oracle():
    seen = np.load(ORACLES / "plot_filter_keep.npz")
    hot, names = seen["multi_hot"], seen["names"].tolist()
    part = Part("train", {}, hot, names, [str(i) for i in range(len(hot))], None)
    rows, labels, order = plot_module.select(part, seen["labels_keep"].tolist())
    assert rows.tolist() == seen["kept_rows"].tolist()
    assert labels.tolist() == seen["kept_labels"].tolist()
    assert order == ["Atelectasis", "Cardiomegaly"]


def test_selection_of_single_labels_and_unknown_names(capfd):
    part = FakeFeatures().get("test")
    rows, labels, order = plot_module.select(part, ["Nodule", "Effusio"])
    assert set(labels) == {"Nodule"} and (part.labels[rows] == 1).all() and order == ["Nodule"]
    assert "did you mean 'Effusion'" in capfd.readouterr().err
    with pytest.raises(UserError, match="none of these classes"):
        plot_module.select(part, ["Effusio"])


def test_sample_is_bounded_per_class_and_fixed():
    names = np.repeat(["a", "b"], [300, 20])
    views = plot_module.choose(names, 50, 1000, seed=1)
    assert len(views["full"]) == 320 and len(views["sampled"]) == 70
    again = plot_module.choose(names, 50, 1000, seed=1)
    assert (views["sampled"] == again["sampled"]).all()
    assert len(plot_module.choose(names, 50, 30, seed=1)["sampled"]) == 30
    assert list(plot_module.choose(names, None, 1000, seed=1)) == ["full"]


def test_pictures_and_arrays_of_every_split_and_key(tmp_path):
    features = FakeFeatures("multi", sizes={"train": 60, "test": 24}, splits=["train", "test"])
    keys = ["encoder", "visual", "linguistic"]
    found = dict(plot(features, tmp_path, keys=keys, max_samples_per_class=10))
    for split in features.splits:
        folder = tmp_path / f"plot_representation_best-1_0_{split}"
        for key in ("encoder", "visual"):
            x = np.load(folder / f"{split}_{key}_embeddings.npy", allow_pickle=False)
            labels = np.load(folder / f"{split}_{key}_labels.npy", allow_pickle=False)
            assert len(x) == len(labels) and labels.dtype.kind == "U" and set(labels) <= set(NAMES)
            for view in ("full", "sampled"):
                for method in ("PCA", "TSNE"):
                    picture = folder / f"{split}_{key}_{view}_{method}.png"
                    assert picture.read_bytes()[:4] == b"\x89PNG"
            assert found[f"t-SNE of {key}, {split} (full)"].is_file()
            stem = f"{split}/plot_representation/{key}"
            assert found[f"{stem}/knn_purity"] > found[f"{stem}/knn_purity_chance"]
            assert -1 <= found[f"{stem}/silhouette"] <= 1
    assert "PCA of encoder, train (sampled)" in found
    assert "PCA of encoder, test (sampled)" not in found  # leaves nothing out: not shown again


@pytest.mark.parametrize("kind, rows", [("none", 12), ("single", 4), ("single", 5)])
def test_small_and_unlabelled_sets_are_drawn(kind, rows, tmp_path):
    features = FakeFeatures(kind, sizes={"test": rows}, splits=["test"])
    found = dict(plot(features, tmp_path, keys=["encoder"]))
    assert found["t-SNE of encoder, test (full)"].is_file()
    labels = list(tmp_path.glob("*/*_labels.npy"))
    assert len(labels) == (kind != "none")


def test_a_collapsed_embedding_is_drawn(tmp_path):
    class Collapsed(FakeFeatures):
        def get(self, split, source="model"):
            part = super().get(split, source)
            part.rows["encoder"][:] = 1
            return part

    features = Collapsed(sizes={"test": 30}, splits=["test"])
    assert dict(plot(features, tmp_path, keys=["encoder"]))["PCA of encoder, test (full)"].is_file()


def test_umap_is_drawn_where_installed(tmp_path, monkeypatch):
    class UMAP:
        def __init__(self, *, n_neighbors, metric, random_state):
            assert n_neighbors == 8 and metric == "cosine"

        def fit_transform(self, x):
            return x[:, :2]

    module = ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    features = FakeFeatures(sizes={"test": 9}, splits=["test"])
    assert dict(plot(features, tmp_path, keys=["encoder"]))[
        "UMAP of encoder, test (full)"
    ].is_file()


@pytest.mark.parametrize("keys, rows", [(["text"], 30), (["encoder"], 3)])
def test_nothing_to_draw_is_one_sentence(keys, rows, tmp_path):
    features = FakeFeatures(sizes={"test": rows}, splits=["test"])
    with pytest.raises(UserError, match="nothing to draw"):
        list(plot(features, tmp_path, keys=keys))


@pytest.mark.parametrize("kind", ["single", "multi", "none"])
def test_saved_representation_reads_back(kind, tmp_path):
    features = FakeFeatures(kind)
    found = dict(save_representation(features, tmp_path, keys=["encoder", "visual"]))
    folder = tmp_path / "save_representation_best-1_0_test"
    assert {path.name for path in folder.iterdir()} >= {
        "test_encoder_embeddings.npy",
        "test_visual_embeddings.npy",
        "test_ids.npy",
    }
    part = features.get("test")
    x = np.load(folder / "test_encoder_embeddings.npy", allow_pickle=False)
    ids = np.load(folder / "test_ids.npy", allow_pickle=False)
    assert x.dtype == np.float32 and (x == part.rows["encoder"]).all() and list(ids) == part.ids
    assert (folder / "test_labels.npy").is_file() == (kind != "none")
    assert all(path.is_file() for path in found.values())
    with pytest.raises(UserError, match="no 'text' features"):
        list(save_representation(features, tmp_path, keys=["text"]))


@pytest.mark.parametrize(
    "name", ["knn", "linear_probe", "plot_representation", "save_representation"]
)
def test_signatures_are_readable_schemas(name):
    from vilmedic_ssl.registry import find

    assert name in protos("post_processing")
    assert all(key.annotation is not None for key in schema(find(name)).values())
