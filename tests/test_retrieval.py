"""Retrieval by pairs, by class and by published files; the gap between modalities; the loss at a
stated batch size.
"""

import csv
import json
import sys
from dataclasses import dataclass, field
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from results import number

from vilmedic_ssl import metrics
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.images import ImageFiles
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import pairs
from vilmedic_ssl.executors.ensemblor import Outcome, headline
from vilmedic_ssl.post_processing.modality_gap import modality_gap
from vilmedic_ssl.post_processing.pair_loss import pair_loss
from vilmedic_ssl.post_processing.retrieval import retrieval
from vilmedic_ssl.report_pairs import _pairs

NAMES = ["Effusion", "Nodule"]
PROMPTS = {"labels": {"Effusion": "effusion", "Nodule": ["nodule", "a nodule"]}}


def vector(text):
    """A text's direction: along the findings it names, and a little along each of its own."""
    own = np.random.default_rng(sum(map(ord, text)) * 7919 + len(text)).normal(size=12)
    named = [4.0 * (name.lower() in text.lower()) for name in NAMES]
    return np.concatenate([named, own]).astype(np.float32)


class Tiny(MedicalDataset):
    """Pairs for the loss: the image is its own number."""

    split = "test"

    def __init__(self, n):
        self.ids = [str(i) for i in range(n)]

    def item(self, index, seed):
        return {"images": torch.full((1, 2, 2), float(index)), "text_group": index // 2}


@dataclass
class Fake:
    """Six films of three patients per report number; two reports are equal."""

    reports: list = field(
        default_factory=lambda: [
            *["Effusion, old."] * 2,
            *["Effusion of the left side."] * 2,
            *["Nodule here."] * 4,
            *["Nodule and effusion."] * 2,
            *["All is well."] * 2,
        ]
    )
    splits: list = field(default_factory=lambda: ["train", "test"])
    labelled: bool = True
    noise: float = 0.0
    tag: str = "best-1_0"
    seed: int = 0

    def of_best(self):
        return self

    def dataset(self, split):
        return Tiny(len(self.reports))

    def inputs(self, split, indices):
        return torch.zeros(len(indices), 1, 2, 2)

    def get(self, split, source="model"):
        text = np.stack([vector(report) for report in self.reports])
        scatter = np.random.default_rng(3).normal(size=text.shape).astype(np.float32)
        image = text + self.noise * scatter if source == "model" else scatter
        rows = {"encoder": image, "visual": image, "text": text, "linguistic": text}
        labels = np.array([[name.lower() in r.lower() for name in NAMES] for r in self.reports])
        return SimpleNamespace(
            name=split,
            rows=rows,
            labels=labels.astype(np.float32) if self.labelled else None,
            label_names=NAMES,
            ids=[f"{split}{i}" for i in range(len(image))],
            patients=[f"p{i // 2}" for i in range(len(image))],
        )


class FakeReader:
    def __init__(self, features, source):
        self.features, self.source, self.model = features, source, FakeModel(source)

    def reports(self, split):
        return self.features.reports

    def embed(self, texts):
        return {"linguistic": np.stack([vector(text) for text in texts])}

    def similarity(self, split, texts):
        return cosines(self.features.get(split, self.source).rows["visual"], self.embed(texts))


def cosines(image, embedded):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, embedded["linguistic"])]
    return unit[0] @ unit[1].T


class FakeModel:
    """Its loss is the batch's size, so that what it was given can be read from the numbers."""

    def __init__(self, source):
        self.shift, self.seen = 0.0 if source == "model" else 1.0, []

    def __call__(self, images, **batch):
        assert images.shape[1:] == (1, 1, 2, 2) and len(batch["text_group"]) == len(images)
        self.seen.append(images[:, 0, 0, 0, 0].tolist())
        return {"loss": torch.tensor(len(images) + self.shift), "chance": 10.0, "floor": 1.0}


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    monkeypatch.setattr(
        pairs, "reader_of", lambda features, plugin, source="model": FakeReader(features, source)
    )


# ---- formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "n", "k"), [(1, 6, 1), (2, 6, 3), (3, 7, 5), (6, 6, 2), (2, 3, 9)]
)
def test_chance_is_the_share_of_draws_that_hit(right, n, k):
    draws = list(combinations(range(n), min(k, n)))
    hits = sum(any(i < right for i in draw) for draw in draws) / len(draws)
    assert metrics.recall_by_chance([right], n, k=k) == pytest.approx(hits)
    assert metrics.recall_by_chance([right, n], n, k=k) == pytest.approx((hits + 1) / 2)


def test_precision_at_k_shares_ties_and_leaves_out_what_is_not_allowed():
    similarity = np.array([[9, 8, 7, 1, 0], [5, 5, 5, 5, 5], [3, 2, 2, 2, 1]], float)
    right = np.array([[1, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 0, 1]], bool)
    assert metrics.precision_at(similarity, right, k=2) == pytest.approx([0.5, 0.4, (1 / 3) / 2])
    allowed = np.ones_like(right)
    allowed[0, 1], allowed[1, 2:] = False, False
    found = metrics.precision_at(similarity, right, k=3, allowed_QC=allowed)
    assert found[:1] == pytest.approx([1.0]) and np.isnan(found[1])
    assert np.isnan(metrics.precision_at(similarity, right, k=6)).all()


def test_precision_of_equal_similarities_is_the_prevalence(monkeypatch):
    monkeypatch.setattr(sys.modules["vilmedic_ssl.metrics.retrieval"], "BLOCK", 2)
    rng = np.random.default_rng(0)
    right = rng.random((5, 40)) < 0.3
    found = metrics.precision_at(np.zeros((5, 40)), right, k=7)
    assert found == pytest.approx(right.mean(1))


def test_ranks_of_pairs_agree_with_the_public_metric():
    rng = np.random.default_rng(0)
    image, text, ids = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), list("aabcdeeef")
    text = np.stack([text[ids.index(i)] for i in ids])
    of_N = metrics.merged(ids)
    assert of_N.tolist() == [0, 0, 1, 2, 3, 4, 4, 4, 5]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    first = [ids.index(i) for i in dict.fromkeys(ids)]
    image_rank, text_rank = metrics.pair_ranks(unit[0] @ unit[1][first].T, of_N)
    found = metrics.retrieval(image, text, text_ids=ids)
    assert found["image_to_text/mean_rank"] == pytest.approx(image_rank.mean())
    assert found["text_to_image/R@5"] == pytest.approx((text_rank <= 5).mean())
    assert (len(image_rank), len(text_rank)) == (9, 6)


# ---- exact pairs ---------------------------------------------------------------------------------


def test_equal_reports_are_one_candidate(tmp_path, capsys):
    found = dict(retrieval(Fake(), tmp_path, draws=30))
    stem = "test/retrieval"
    assert found[f"{stem}/images"] == 12 and found[f"{stem}/texts"] == 5
    assert found[f"{stem}/duplicate_ceiling"] == pytest.approx(5 / 12)
    for way in ("image_to_text", "text_to_image"):
        assert number(found[f"{stem}/{way}/R@1"]) == found[f"{stem}/{way}/median_rank"] == 1
    assert found[f"{stem}/image_to_text/R@1"][1:] == pytest.approx((0.025 ** (1 / 6), 1))
    assert found[f"{stem}/text_to_image/R@1/interval"] == "no interval: 5 patients"
    assert found[f"{stem}/image_to_text/chance_R@1"] == pytest.approx(1 / 5)
    by_hand = np.mean([2, 2, 4, 2, 2]) / 12
    assert found[f"{stem}/text_to_image/chance_R@1"] == pytest.approx(by_hand)
    assert found[f"{stem}/random_init/image_to_text/R@1"][0] < 0.8
    assert f"{stem}/minus_random_init/text_to_image/R@5" in found
    told = capsys.readouterr().err
    assert "keep R@1 below 0.417" in told and "chance R@1 0.200" in told
    table = json.loads((tmp_path / "retrieval_best-1_0.json").read_text())
    assert table[f"{stem}/image_to_text/R@1"]["value"] == 1


def test_images_without_a_report_are_left_out(tmp_path, capsys):
    features = Fake(reports=["", " ", *Fake().reports[2:]])
    found = dict(retrieval(features, tmp_path, draws=0, references=()))
    assert "2 images of test have no report" in capsys.readouterr().err
    assert found["test/retrieval/images"] == 10 and found["test/retrieval/texts"] == 4


# ---- by class ------------------------------------------------------------------------------------


def test_images_reports_and_prompts_look_for_their_class(tmp_path, capsys):
    keys = {"by": "classes", "ks": [2, 50], "prompts": PROMPTS, "draws": 30}
    found = dict(retrieval(Fake(noise=0.3), tmp_path, **keys))
    stem = "test/retrieval_classes"
    assert "no P@50" in capsys.readouterr().err
    for way in ("image_to_image", "report_to_image", "prompt_to_image"):
        value = found[f"{stem}/{way}/P@2"]
        value = value[0] if isinstance(value, tuple) else value
        both = [found[f"{stem}/{way}/P@2/{name}"] for name in NAMES]
        both = [v[0] if isinstance(v, tuple) else v for v in both]
        assert value == pytest.approx(np.mean(both)) and value > found[f"{stem}/{way}/chance_P"]
    assert not isinstance(found[f"{stem}/prompt_to_image/P@2"], tuple)  # prompts are no patients
    # two of twelve films are the patient's own; 4 of 10 others show an effusion, 4 a nodule
    assert found[f"{stem}/image_to_image/chance_P"] == pytest.approx(0.4)
    assert found[f"{stem}/prompt_to_image/chance_P"] == pytest.approx(0.5)


# ---- published files -----------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """A small set laid out as ConVIRT's, and its images, whose brightness is their finding."""
    root, rows = tmp_path / "images", []
    for i in range(8):
        name = f"CheXpert-v1.0-small/train/patient{i:05}/study1/view1_frontal.jpg"
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 40 + 150 * (i % 2), np.uint8)).save(root / name)
        rows.append([name, *(("1.0", "") if i % 2 else ("-1.0", "1.0"))])
    tables = {
        "image-retrieval/candidate.csv": [["Path", "Edema", "Fracture"], *rows[:6]],
        "image-retrieval/query.csv": [["Variable", "Path"], ["Fracture", rows[6][0]],
                                      ["Edema", rows[7][0]]],
        "text-retrieval/query.csv": [["Variable", "Text"], ["Edema", "There is edema."]],
    }  # fmt: skip
    for name, lines in tables.items():
        path = tmp_path / "convirt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    return tmp_path / "convirt", root


class FileFeatures(Fake):
    def dataset(self, split):
        transform = Transform(resize=8, crop=8, channels="gray")
        return SimpleNamespace(files=ImageFiles([], transform, augment=False))

    def embed(self, images):
        bright = images.mean((1, 2, 3))[:, None]
        return {"visual": torch.cat([bright, torch.zeros(len(images), 13)], dim=1)}

    def untrained(self):
        return SimpleNamespace(encode=lambda images: {"visual": torch.ones(len(images), 14)})


def test_the_published_sets_are_read_by_file(published, tmp_path):
    folder, root = published
    keys = {"by": "files", "files": str(folder), "ks": [3], "draws": 0}
    found = dict(retrieval(FileFeatures(), tmp_path, root=str(root), **keys))
    stem = "8x200/retrieval_files"
    assert found[f"{stem}/image_to_image/P@3"] == 1
    assert found[f"{stem}/random_init/image_to_image/P@3"] == pytest.approx(0.5)  # all tied
    assert found[f"{stem}/image_to_image/chance_P"] == pytest.approx(0.5)
    assert f"{stem}/text_to_image/P@3/Edema" in found
    inside = dict(retrieval(FileFeatures(), tmp_path, root=f"{root}/CheXpert-v1.0-small", **keys))
    assert inside[f"{stem}/image_to_image/P@3"] == 1


def test_files_that_are_missing_or_elsewhere_are_one_sentence(published, tmp_path):
    folder, root = published

    def run(**keys):
        given = {"by": "files", "files": str(folder), **keys}
        return dict(retrieval(FileFeatures(), tmp_path, **given))

    with pytest.raises(UserError, match="needs files: DIR"):
        run()
    with pytest.raises(UserError, match="write the folder that holds CheXpert-v1.0-small"):
        run(root=str(tmp_path))
    with pytest.raises(UserError, match=r"there is no .*candidate.csv"):
        run(root=str(root), files=str(tmp_path))
    query = folder / "image-retrieval/query.csv"
    query.write_text("Variable,Path\nEdema,../../secret.jpg\n")
    with pytest.raises(UserError, match="leads out"):
        run(root=str(root))
    query.write_text("Variable,Path\nOedema,x.jpg\n")
    with pytest.raises(UserError, match="no column 'Oedema'"):
        run(root=str(root))
    query.write_text("Variable,Text\n")
    with pytest.raises(UserError, match="expected rows with the columns Variable, Path"):
        run(root=str(root))


@pytest.mark.parametrize(
    ("features", "keys", "sentence"),
    [
        (Fake(splits=["train"]), {}, "only train"),
        (Fake(), {"ks": [0]}, "write numbers from 1"),
        (Fake(), {"prompts": PROMPTS}, "only by: classes"),
        (Fake(), {"files": "x"}, "write by: files"),
        (Fake(reports=["same"] * 4), {}, "1 different report"),
        (Fake(labelled=False), {"by": "classes"}, "has no labels"),
    ],
)
def test_what_does_not_fit_is_refused(features, keys, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        dict(retrieval(features, tmp_path, draws=0, **keys))


# ---- gap and loss --------------------------------------------------------------------------------


def test_the_gap_is_the_distance_of_the_means(tmp_path):
    found = dict(modality_gap(Fake(splits=["test"], noise=1.0), tmp_path, pairs=10))
    part = Fake(noise=1.0).get("test")
    unit = [
        part.rows[key] / np.linalg.norm(part.rows[key], axis=1, keepdims=True)
        for key in ("visual", "linguistic")
    ]
    stem = "test/modality_gap"
    gap = np.linalg.norm(unit[0].mean(0) - unit[1].mean(0))
    assert found[f"{stem}/gap"] == pytest.approx(gap, rel=1e-5)
    square = ((unit[0][:, None] - unit[1][None]) ** 2).sum(2)
    assert found[f"{stem}/alignment"] == pytest.approx(square.diagonal().mean(), rel=1e-5)
    others = square[~np.eye(12, dtype=bool)].mean()
    assert found[f"{stem}/alignment_others"] == pytest.approx(others, rel=1e-5)
    assert found[f"{stem}/random_init/alignment"] > found[f"{stem}/alignment"]
    assert (tmp_path / "modality_gap_best-1_0_test.png").is_file()
    assert metrics.modality_gap([[1.0, 0], [2, 0]], [[0, 3.0]]) == pytest.approx(2**0.5)


def test_the_loss_is_read_in_whole_shuffled_batches(tmp_path, monkeypatch):
    models = {}
    monkeypatch.setattr(
        pairs,
        "reader_of",
        lambda features, plugin, source: models.setdefault(source, FakeReader(features, source)),
    )
    found = dict(pair_loss(Fake(splits=["test"]), tmp_path, batch_size=5, shuffles=2))
    seen = models["model"].model.seen
    assert [len(batch) for batch in seen] == [5, 5, 5, 5]  # of twelve, two are dropped
    assert len({*seen[0], *seen[1]}) == 10 and seen[0] != seen[2]
    assert models["random_init"].model.seen == seen
    stem = "test/pair_loss"
    assert found[f"{stem}/loss"] == 5 and found[f"{stem}/below_chance"] == 5
    assert found[f"{stem}/random_init/loss"] == 6 and found[f"{stem}/floor"] == 1
    assert found[f"{stem}/batch_size"] == 5
    again = dict(pair_loss(Fake(splits=["test"]), tmp_path, batch_size=5, shuffles=2))
    assert again == found
    for keys, sentence in (({"batch_size": 13}, "write batch_size: 12"), ({"shuffles": 0}, "1 or")):
        with pytest.raises(UserError, match=sentence):
            dict(pair_loss(Fake(splits=["test"]), tmp_path, **keys))


def test_headline_and_report_show_retrieval_and_space(tmp_path):
    outcome, features = Outcome(), Fake(splits=["test"], noise=1.0)
    for plugin, keys in (
        (retrieval, {"draws": 30}),
        (retrieval, {"by": "classes", "ks": [2], "draws": 30}),
        (modality_gap, {"pairs": 0}),
        (pair_loss, {"batch_size": 5}),
    ):
        for name, value in plugin(features, tmp_path, **keys):
            outcome.add(plugin.__name__, name, value)
    table, page = headline(outcome.results), _pairs(outcome.results)
    assert "test retrieval image_to_text/R@1" in table and "random init" in table
    for words in ("image to text", "median rank", "12 images, 5 different reports", "P@2",
                  "distance of the means", "loss, batches of 5"):  # fmt: skip
        assert words in page, words
    assert _pairs({}) == ""
