"""What is watched during training: it measures the right thing and changes nothing."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from methods import node_of

from vilmedic_ssl import build, metrics
from vilmedic_ssl.data.patients import Unknown
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint, gradient_cache
from vilmedic_ssl.executors.monitors import METRICS, Seen, check_pairs, check_scores
from vilmedic_ssl.executors.online_probe import OnlineProbe
from vilmedic_ssl.executors.run import read_log
from vilmedic_ssl.executors.validator import neighbours_left_out
from vilmedic_ssl.experiment import load_config, train

CONFIG = "config/SELFSUP/simclr-phantom.yml"


def trained(tiny, name, *more):
    folder = train(load_config(CONFIG, [*tiny(name), *more]))
    evaluations = [r for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"]
    return checkpoint.read(folder / "last_0.pth"), evaluations[-1]["scores"]


def test_no_monitor_changes_the_training(tiny, capsys):
    names = [n for n, metric in METRICS.items() if not (metric.scores or metric.codes)]
    every = f"validator.metrics=[{','.join(names)}]"
    watched, scores = trained(tiny, "watched", every)
    told = capsys.readouterr().err
    plain, _ = trained(tiny, "plain", "validator.metrics=null")
    assert set(names) <= set(scores) and "probe: a linear layer learns the labels" in told
    assert "probe:" not in capsys.readouterr().err and plain["probe"] is None
    for name, weight in plain["model"].items():
        assert torch.equal(watched["model"][name], weight), name


def test_the_probe_learns_labels_and_the_encoder_does_not(monkeypatch):
    torch.manual_seed(0)
    model = build(node_of("SimCLR", "batch norm")).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    images = torch.randn(24, 2, 1, 32, 32)
    batch = {"images": images, "labels": torch.arange(24) % 3}
    probe = OnlineProbe(3, torch.device("cpu"))
    probe.learn(model, batch, torch.no_grad)
    first = {n: t.clone() for n, t in probe.linear.state_dict().items()}
    for _ in range(300):
        probe.learn(model, batch, torch.enable_grad)
    features = model.eval().encode(images[:, 0])["encoder"]
    assert (probe.scores(features).argmax(1) == batch["labels"]).float().mean() > 0.6
    assert any(not torch.equal(t, first[n]) for n, t in probe.linear.state_dict().items())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_several_findings_are_scored_by_auroc():
    labels = np.array([[1, 0], [0, 1], [1, np.nan], [0, 0]], dtype=np.float32)
    scores = np.array([[2, 1], [0, 3], [1, 9], [-1, 0]], dtype=np.float32)
    seen = Seen(np.eye(4), np.eye(4), np.eye(4), labels, probe=scores)
    assert METRICS["probe"].score(seen) == 1.0


def test_the_models_own_scores_are_measured():
    rows, own = np.eye(4), ("accuracy", "balanced_accuracy", "auroc")
    scores = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    seen = Seen(rows, rows, rows, np.array([0, 1, 1, -1]), scores=scores)  # the last is unknown
    found = {name: METRICS[name].score(seen) for name in own}
    assert found == pytest.approx({"accuracy": 2 / 3, "balanced_accuracy": 0.75, "auroc": 1.0})
    labels = np.array([[1, 0], [0, 1], [1, np.nan], [0, 0]], dtype=np.float32)
    seen = Seen(rows, rows, rows, labels, scores=scores[:, :2])
    found = {name: METRICS[name].score(seen) for name in own}
    expected = {"accuracy": (3 / 4 + 2 / 3) / 2, "balanced_accuracy": 0.625, "auroc": 0.75}
    assert found == pytest.approx(expected)
    seen.labels[:, 1] = 0  # of a finding that never is there, only the accuracy is defined
    found = {name: METRICS[name].score(seen) for name in own}
    expected = {"accuracy": 0.75, "balanced_accuracy": 0.75, "auroc": 0.5}
    assert found == pytest.approx(expected)


def test_what_train_does_not_show_is_no_part_of_a_mean():
    rows = np.eye(6)
    labels = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 1], [1, 0]], dtype=np.float32)
    scores = np.stack([labels[:, 0], 1 - labels[:, 1]], axis=1)  # right, and wrong throughout
    seen = Seen(
        rows, rows, rows, labels, probe=scores, scores=scores, learnable=np.array([1, 0]) > 0
    )
    means = ("probe", "auroc", "balanced_accuracy")
    assert [METRICS[name].score(seen) for name in means] == [1.0, 1.0, 1.0]
    assert METRICS["accuracy"].score(seen) == 0.5
    y = np.array([0, 0, 1, 1, 2, 2])
    chances = np.array([[8, 1, 0], [7, 2, 0], [2, 7, 0], [1, 8, 0], [4, 4, 0], [3, 4, 1]]) / 9
    seen = Seen(rows, rows, rows, y, probe=chances, scores=chances)
    seen.learnable = np.array([True, True, False])
    ranked = [metrics.auroc(y == c, chances[:, c]) for c in (0, 1)]
    assert METRICS["auroc"].score(seen) == pytest.approx(np.mean(ranked))
    assert METRICS["balanced_accuracy"].score(seen) == pytest.approx(2 / 3)


def relabelled(phantom, path, **cells):
    """The cohort's table with findings set to what a function of row number and split gives."""
    rows = list(csv.DictReader((phantom / "manifest.csv").open(encoding="utf-8")))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for i, row in enumerate(rows):
            given = {name: cell(i, row["split"]) for name, cell in cells.items()}
            writer.writerow({**row, **given})
    return f"dataset.manifest={path}"


def test_no_training_is_steered_by_what_it_does_not_show(tiny, phantom, tmp_path, capsys):
    absent = {"Fracture": lambda i, split: "0" if split == "train" else str(i % 2)}
    both = {**absent, "Pneumothorax": lambda i, split: str(i % 2)}
    alone = {**absent, "Pneumothorax": lambda i, split: str(i % 2 * (split == "train"))}
    keys = ["dataset.label=null", "dataset.labels=[Fracture,Pneumothorax]", "dataset.masks=null"]
    keys += ["validator.metrics=[probe]", f"dataset.root={phantom}", "ensemblor.post_processing=[]"]
    keys += ["trainor.early_stop_metric=probe"]
    trained(tiny, "both", *keys, relabelled(phantom, tmp_path / "both.csv", **both))
    said = " ".join(capsys.readouterr().err.split())
    assert "no image of Fracture, or no other one, so the mean that probe is leaves out 1" in said
    with pytest.raises(UserError, match="'validate' has no finding, present in .*train shows"):
        trained(tiny, "alone", *keys, relabelled(phantom, tmp_path / "alone.csv", **alone))


def test_scores_of_a_model_without_any_are_one_sentence(tiny):
    check_scores(["accuracy", "code_perplexity"], classifies=True, encodes=True)
    with pytest.raises(ConfigError, match="code_perplexity counts the codes of images"):
        trained(tiny, "codes", "validator.metrics=[code_perplexity]")
    with pytest.raises(ConfigError, match="accuracy reads the model's own class scores"):
        trained(tiny, "none", "validator.metrics=[knn,accuracy]")


def test_codes_are_counted():
    rows = np.eye(2)
    seen = Seen(rows, rows, rows, codes=np.array([[0, 0, 5, 5], [5, 0, 5, 0]]), codebook=8)
    assert METRICS["codebook_usage"].score(seen) == 0.25
    assert METRICS["code_perplexity"].score(seen) == pytest.approx(2.0)
    seen.codes = np.array([[3, 3], [3, 3]])
    assert METRICS["code_perplexity"].score(seen) == pytest.approx(1.0)


def test_pairs_need_two_views():
    check_pairs(["effective_rank", "knn"], 1)
    with pytest.raises(ConfigError, match="top1 compares two views"):
        check_pairs(["top1"], 1)


def test_metrics_of_labels_need_labels(tiny):
    unlabelled = ["dataset.label=null", "ensemblor.post_processing=[]"]
    for name in ("knn", "probe"):
        with pytest.raises(UserError, match=f"{name} needs labels.*class folders, or from"):
            trained(tiny, name, f"validator.metrics=[{name}]", *unlabelled)


def test_what_batch_norm_sees_of_a_large_batch_is_measured_and_told(tiny, capsys):
    chunked = ["model.forward_batch_size=4", "validator.metrics=null"]
    trained(tiny, "chunked", *chunked)
    assert "batch norm sees 4 images at a time: on the first batch" in capsys.readouterr().err
    vit = ["model.cnn.backbone=test_vit", "model.cnn.options={img_size: 32}"]
    trained(tiny, "norm-free", *chunked, *vit, "trainor.channels_last=false")
    told = capsys.readouterr().err
    assert "4 at a time, with the gradient of the whole" in told and "batch norm" not in told


@pytest.mark.parametrize(("encoder", "apart"), [("batch norm", True), ("no norm", False)])
def test_the_gap_of_batch_norm_leaves_no_trace(encoder, apart):
    torch.manual_seed(0)
    model = build(node_of("SimCLR", encoder)).train()
    images = torch.randn(8, 2, 1, 32, 32)
    before, drawn = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    gap = gradient_cache.norm_gap(model, {"images": images}, 2)
    assert gap > 1e-3 if apart else gap < 1e-6
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or name.endswith("num_batches_tracked"), name


def test_knn_leaves_out_the_patient_of_an_image():
    patients = np.repeat([f"p{i}" for i in range(12)], 4)
    y = np.repeat(np.arange(12) % 3, 4)
    x = np.random.default_rng(0).normal(size=(12, 32))[np.repeat(np.arange(12), 4)]
    rows = np.eye(48)
    seen = Seen(x, rows, rows, y, patients)
    assert METRICS["knn"].score(seen) < 0.7  # it was 1.0
    seen.patients = None
    assert METRICS["knn"].score(seen) == 1.0


def test_the_validator_knows_the_patients_and_says_so(tiny, monkeypatch, capsys):
    known = []
    score = METRICS["knn"].score
    whole = replace(METRICS["knn"], score=lambda seen: known.append(seen) or score(seen))
    monkeypatch.setitem(METRICS, "knn", whole)
    trained(tiny, "patients", "validator.metrics=[knn]")
    told = capsys.readouterr().err
    assert told.count("validate: kNN leaves out images of the same patient") == 1
    assert 1 < len(set(known[-1].patients)) < len(known[-1].labels)


def test_what_knn_leaves_out_is_told():
    assert "patients unknown: kNN leaves out the image itself" in neighbours_left_out(None)
    assert neighbours_left_out([Unknown("1"), Unknown("2")]) == neighbours_left_out(None)
    assert neighbours_left_out(["a", "b"]) == "kNN leaves out images of the same patient"
    assert "; 1 of 2 have none" in neighbours_left_out(["a", Unknown("2")])
