"""Losses against the numbers of the original codes, and their behaviour at the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.losses import (
    barlow_twins,
    blocks,
    byol,
    dino,
    distillation,
    label_entropy,
    moco_v3,
    nt_xent,
    ordinal_entropy,
    sim_siam,
    vicreg,
)

ORACLES = Path(__file__).parent / "oracles"


def pairs(labels):
    """Row numbers of the first and second view of each image."""
    first = [i for i, label in enumerate(labels) if label not in labels[:i]]
    second = [next(j for j in range(i + 1, len(labels)) if labels[j] == labels[i]) for i in first]
    return first, second


@pytest.mark.parametrize("name", ["ntxent_a", "ntxent_b", "ntxent_single_pair"])
def test_nt_xent_equals_the_metric_learning_library(name):
    oracle = np.load(ORACLES / f"{name}.npz")
    z = torch.tensor(oracle["z"], requires_grad=True)
    first, second = pairs(oracle["labels"].tolist())
    loss = nt_xent(z[first], z[second], tau=float(oracle["tau"]))
    assert float(loss.detach()) == pytest.approx(float(oracle["loss"]), abs=1e-9)
    if "grad_z" in oracle:
        loss.backward()
        np.testing.assert_allclose(z.grad.numpy(), oracle["grad_z"], atol=1e-9)


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.5])
def test_nt_xent_equals_the_simclr_of_the_medmnist_thesis(case, tau):
    oracle = np.load(ORACLES / "seeds_ntxent_torch.npz")
    v1, v2 = (torch.tensor(oracle[f"{case}/v{i}"], requires_grad=True) for i in (1, 2))
    loss = nt_xent(v1, v2, tau=tau)
    loss.backward()
    key = f"{case}/tau{tau}"
    assert float(loss.detach()) == pytest.approx(float(oracle[f"{key}/loss"]), abs=1e-9)
    np.testing.assert_allclose(v1.grad.numpy(), oracle[f"{key}/grad_v1"], atol=1e-9)
    np.testing.assert_allclose(v2.grad.numpy(), oracle[f"{key}/grad_v2"], atol=1e-9)


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.5])
def test_the_tensorflow_loss_is_twice_ours(case, tau):
    """google-research/simclr adds two directions where the paper takes the mean of 2N anchors."""
    oracle = np.load(ORACLES / "seeds_ntxent_simclr_tf.npz")
    v1, v2 = (torch.tensor(oracle[f"{case}/v{i}"], dtype=torch.float64) for i in (1, 2))
    theirs = float(oracle[f"{case}/tau{tau}/norm1/loss"])
    assert 2 * float(nt_xent(v1, v2, tau=tau)) == pytest.approx(theirs, rel=1e-5)


def test_one_pair_has_nothing_to_repel():
    z = torch.randn(1, 4)
    assert float(nt_xent(z, torch.randn(1, 4), tau=0.5)) == 0


def rows(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def value_and_gradients(loss, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    found = loss(*leaves)
    return [found.detach(), *torch.autograd.grad(found, leaves, materialize_grads=True)]


WEIGHTS = {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0}
# Each takes two (N, D) tensors.
LOSSES = {
    "nt_xent": lambda a, b: nt_xent(a, b, tau=0.05),
    "moco_v3": lambda a, b: moco_v3(a, b, tau=0.2),
    "barlow_twins": lambda a, b: barlow_twins(a, b, lambda_=0.0051),
    "vicreg": lambda a, b: vicreg(a, b, **WEIGHTS),
    "byol": byol,
    "sim_siam": sim_siam,
    "dino": lambda a, b: dino(
        a.reshape(len(a), 2, -1),
        b.reshape(len(b), 2, -1),
        student_temp=0.1,
        teacher_temp=0.04,
        center=torch.linspace(0, 1, a.shape[1] // 2),
    ),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    z1, z2 = (rows(16, 32, seed=s).to(dtype) for s in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(z1, z2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(z1.float(), z2.float()))


@every_loss
def test_float32_is_close_to_float64(loss):
    z1, z2 = rows(16, 32), rows(16, 32, seed=1)
    wide = value_and_gradients(loss, z1, z2)
    for found, expected in zip(
        value_and_gradients(loss, z1.float(), z2.float()), wide, strict=True
    ):
        assert found.dtype == torch.float32 and expected.dtype == torch.float64
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@every_loss
@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_batches_are_finite(loss, n):
    found = value_and_gradients(loss, rows(n, 4), rows(n, 4, seed=1))
    assert all(torch.isfinite(t).all() for t in found)


@pytest.mark.parametrize("loss", [LOSSES["nt_xent"], LOSSES["moco_v3"]], ids=["nt_xent", "moco_v3"])
@pytest.mark.parametrize("limit", [1, 40, 150])
def test_blocks_of_anchors_equal_the_whole(loss, limit, monkeypatch):
    z1, z2 = rows(13, 6), rows(13, 6, seed=1)
    whole = value_and_gradients(loss, z1, z2)
    monkeypatch.setattr(blocks, "WHOLE", limit)
    for found, expected in zip(value_and_gradients(loss, z1, z2), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_moco_v3_equals_its_algorithm():
    query, key, tau = rows(9, 5, grad=True), rows(9, 5, seed=1, grad=True), 0.2
    logits = cosine_similarity(query[:, None], key.detach()[None], dim=2) / tau
    expected = cross_entropy(logits, torch.arange(9)) * 2 * tau
    found = moco_v3(query, key, tau=tau)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, query)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert not moco_v3(query.detach(), key, tau=tau).requires_grad
    chance = moco_v3(rows(9, 5), torch.ones_like(key), tau=tau)
    assert float(chance) == pytest.approx(2 * tau * np.log(9))


@pytest.mark.parametrize("case", ["rand", "wide", "pair"])
@pytest.mark.parametrize("lambda_", [0.0051, 0.005, 1.0])
def test_barlow_twins_equals_its_authors_code(case, lambda_):
    """`rand` has a feature that is dead in one view."""
    oracle = np.load(ORACLES / "seeds_barlow.npz")
    z1, z2 = (torch.tensor(oracle[f"{case}/z{i}"]) for i in (1, 2))
    found = value_and_gradients(lambda a, b: barlow_twins(a, b, lambda_=lambda_), z1, z2)
    key = f"{case}/lam{lambda_}"
    for name, tensor in zip(["loss", "grad_z1", "grad_z2"], found, strict=True):
        np.testing.assert_allclose(tensor, oracle[f"{key}/fb_{name}_f64"], rtol=1e-9, atol=1e-9)
    single = barlow_twins(z1.float(), z2.float(), lambda_=lambda_)
    assert float(single) == pytest.approx(float(oracle[f"{key}/fb_loss_f32"]), rel=1e-5)
    for scale in (1.0, 0.024):
        expected = float(oracle[f"{key}/scale{scale}/pol_loss"])
        scaled = barlow_twins(z1, z2, lambda_=lambda_, scale=scale)
        assert float(scaled) == pytest.approx(expected, rel=1e-9)


def test_statistics_do_not_cancel_for_a_large_mean():
    z1, z2 = (100 + torch.tensor(rows(64, 8, seed=s).numpy(), dtype=torch.float32) for s in (0, 1))
    for name in ("barlow_twins", "vicreg"):
        found, expected = LOSSES[name](z1, z2), LOSSES[name](z1.double(), z2.double())
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_vicreg_equals_the_original_code_and_its_parts():
    oracle = np.load(ORACLES / "vicreg_a.npz")
    z = [torch.tensor(oracle[name]) for name in ("z1", "z2")]
    names, weights = list(WEIGHTS), oracle["weights"].tolist()

    def loss(weights):
        return lambda a, b: vicreg(a, b, **dict(zip(names, weights, strict=True)))

    found = value_and_gradients(loss(weights), *z)
    for name, tensor in zip(["loss", "grad_z1", "grad_z2"], found, strict=True):
        np.testing.assert_allclose(tensor, oracle[name], rtol=1e-9, atol=1e-9)
    for part, one in zip(["sim", "var", "cov"], np.eye(3).tolist(), strict=True):
        assert float(loss(one)(*z)) == pytest.approx(float(oracle[part]), rel=1e-9)


def test_byol_equals_three_original_codes():
    seen, other = (np.load(ORACLES / f"seeds_byol_{name}.npz") for name in ("torch", "deepmind"))
    x, y = torch.tensor(seen["x"], requires_grad=True), torch.tensor(seen["y"], requires_grad=True)
    each = [float(byol(x[i : i + 1], y[i : i + 1]).detach()) for i in range(len(x))]
    for name in ("sthalles_loss", "lucidrains_loss"):
        np.testing.assert_allclose(each, seen[name], rtol=1e-9)
    loss = byol(x, y)
    loss.backward()
    np.testing.assert_allclose(x.grad, seen["grad_x_of_mean"], atol=1e-9)
    assert y.grad is None and float(loss.detach()) == pytest.approx(np.mean(each))
    # The last target is all zero: DeepMind's squared difference is 1 there, not 2.
    np.testing.assert_allclose(each[:-1], other["regression_loss"][:-1], rtol=1e-9)
    assert each[-1] == 2 and other["regression_loss"][-1] == pytest.approx(1)


def test_both_directions_of_byol_add_up():
    seen, other = (np.load(ORACLES / f"seeds_byol_{name}.npz") for name in ("torch", "deepmind"))
    p1, p2, t1, t2 = (torch.tensor(seen[f"sym/{name}"]) for name in ("p1", "p2", "t1", "t2"))
    both = [float(byol(p1, t2) + byol(p2, t1)), float(byol(p1, t1) + byol(p2, t2))]
    for expected in (float(seen["sym/loss_mean"]), float(other["sym_loss_mean"])):
        assert any(value == pytest.approx(expected, rel=1e-9) for value in both)


def test_sim_siam_is_the_negative_cosine():
    p, z = rows(9, 5, grad=True), rows(9, 5, seed=1, grad=True)
    loss = sim_siam(p, z)
    expected = -cosine_similarity(p, z.detach()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    loss.backward()
    assert z.grad is None
    torch.testing.assert_close(p.grad, torch.autograd.grad(expected, p)[0], rtol=1e-9, atol=1e-9)


def test_dino_equals_the_sum_over_pairs_of_different_crops():
    student, teacher, center = rows(5, 4, 7, grad=True), rows(5, 2, 7, seed=1), rows(7, seed=2)
    pairs_ = [(g, c) for g in range(2) for c in range(4) if g != c]
    expected = 0
    for g, c in pairs_:
        target = torch.softmax((teacher[:, g] - center) / 0.04, dim=1)
        expected = expected + cross_entropy(student[:, c] / 0.1, target) / len(pairs_)
    teacher.requires_grad_()
    found = dino(student, teacher, student_temp=0.1, teacher_temp=0.04, center=center)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    flat = dino(
        torch.ones_like(student.detach()),
        teacher,
        student_temp=0.1,
        teacher_temp=0.04,
        center=center,
    )
    assert float(flat) == pytest.approx(np.log(7)) and not flat.requires_grad


@pytest.mark.parametrize("crops, seen", [(1, 1), (2, 3), (2, 0)])
def test_dino_refuses_crops_without_a_pair(crops, seen):
    with pytest.raises(UserError, match="different crops"):
        keys = {"student_temp": 0.1, "teacher_temp": 0.04, "center": torch.zeros(3)}
        dino(rows(2, crops, 3), rows(2, seen, 3), **keys)


@pytest.mark.parametrize("limit", [1, 2**22])
def test_small_temperatures_stay_finite(limit, monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE", limit)
    z = torch.nn.functional.normalize(torch.randn(8, 4))
    assert all(
        torch.isfinite(t).all()
        for t in value_and_gradients(lambda a, b: nt_xent(a, b, tau=1e-4), z, z)
    )


@pytest.mark.parametrize("case", ["bin", "multi"])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 4.0])
def test_distillation_equals_the_simclr_code(case, temperature):
    oracle = np.load(ORACLES / "seeds_distill.npz")
    teacher = torch.tensor(oracle[f"{case}/teacher_logits"], dtype=torch.float64)
    student = torch.tensor(oracle[f"{case}/student_logits"], dtype=torch.float64)
    student.requires_grad_()
    loss = distillation(student, teacher, temperature=temperature)
    loss.backward()
    key = f"{case}/T{temperature}"
    for theirs in ("semisuper_loss", "google_colab_loss"):
        assert float(loss.detach()) == pytest.approx(float(oracle[f"{key}/{theirs}"]), rel=1e-5)
    grad = oracle[f"{key}/semisuper_grad_student"]
    np.testing.assert_allclose(student.grad.numpy(), grad, atol=1e-6 * max(1, abs(grad).max()))


@pytest.mark.parametrize("case", ["bin", "multi"])
def test_without_a_teachers_share_it_is_cross_entropy(case):
    oracle = np.load(ORACLES / "seeds_distill.npz")
    student, teacher = (torch.tensor(oracle[f"{case}/{w}_logits"]) for w in ("student", "teacher"))
    labels = torch.tensor(oracle[f"{case}/onehot"]).argmax(1)
    expected = pytest.approx(float(oracle[f"{case}/supervised_loss"]), rel=1e-5)
    keys = {"temperature": 3.0, "labels": labels, "alpha": 0.0}
    assert float(distillation(student, teacher, **keys)) == expected
    assert float(label_entropy(student, labels)) == expected


def test_distillation_leaves_out_what_is_unlabelled():
    student, teacher = rows(5, 3, seed=1), rows(5, 3, seed=2)
    soft = distillation(student, teacher, temperature=2.0)
    labels = torch.tensor([0, -1, 2, -1, 1])
    found = distillation(student, teacher, temperature=2.0, labels=labels, alpha=0.25)
    known = labels >= 0
    assert float(found) == pytest.approx(
        float(0.25 * soft + 0.75 * cross_entropy(student[known], labels[known]))
    )
    found = distillation(student, teacher, temperature=2.0, labels=labels * 0 - 1, alpha=0.25)
    assert float(found) == pytest.approx(float(0.25 * soft))
    with pytest.raises(UserError, match=r"alpha 0\.5 takes labels"):
        distillation(student, teacher, temperature=1.0, alpha=0.5)


def test_findings_are_distilled_one_by_one():
    student, teacher, nan = rows(4, 2, seed=1), rows(4, 2, seed=2), float("nan")
    soft = torch.nn.functional.binary_cross_entropy_with_logits(
        student / 2, (teacher / 2).sigmoid()
    )
    assert float(distillation(student, teacher, temperature=2.0, findings=True)) == pytest.approx(
        4 * float(soft)
    )
    labels = torch.tensor([[1, nan], [nan, nan], [0, 1], [nan, nan]], dtype=torch.float64)
    found = distillation(student, teacher, temperature=2.0, labels=labels, alpha=0.5)
    hard = label_entropy(student[[0, 2]], labels[[0, 2]])
    assert float(found) == pytest.approx(0.5 * 4 * float(soft) + 0.5 * float(hard))


def test_label_entropy_with_weights_and_smoothing():
    logits, labels = rows(4, 3), torch.tensor([2, 0, -1, 1])
    weights = torch.tensor([0.5, 1.0, 2.0])
    each = cross_entropy(logits, labels.clamp_min(0), reduction="none", label_smoothing=0.2)
    expected = (each * torch.tensor([2.0, 0.5, 0.0, 1.0])).sum() / 4
    found = label_entropy(logits, labels, class_weights=weights, label_smoothing=0.2)
    assert float(found) == pytest.approx(float(expected))
    assert float(label_entropy(logits, labels)) == pytest.approx(
        float(cross_entropy(logits, labels, ignore_index=-1)) * 3 / 4
    )
    findings = torch.tensor([[1.0, 0, float("nan")]] * 4, dtype=torch.float64)
    p = logits.sigmoid()
    smooth = 0.9 * findings[:, :2] + 0.05
    terms = -(weights[:2] * smooth * p.log()[:, :2] + (1 - smooth) * (1 - p).log()[:, :2])
    found = label_entropy(logits, findings, class_weights=weights, label_smoothing=0.1)
    assert float(found) == pytest.approx(float(terms.mean()))


def test_ordinal_entropy_is_that_of_its_questions():
    logits, labels = rows(5, 3), torch.tensor([0, 1, 2, 3, -1])
    p = logits.sigmoid()
    above = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1.0]])
    terms = -(above * p[:4].log() + (1 - above) * (1 - p[:4]).log()).sum(1)
    assert float(ordinal_entropy(logits, labels)) == pytest.approx(float(terms.sum() / 5))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = ordinal_entropy(logits, labels, class_weights=weights)
    assert float(found) == pytest.approx(float((terms * weights).sum() / 5))


def test_ordinal_probabilities_are_differences():
    from vilmedic_ssl.losses.labels import ordinal_logits

    falling = rows(6, 4).sort(1, descending=True).values
    above = torch.cat([torch.ones(6, 1), falling.sigmoid(), torch.zeros(6, 1)], dim=1)
    torch.testing.assert_close(ordinal_logits(falling).exp(), above[:, :-1] - above[:, 1:])
    out_of_order = ordinal_logits(torch.tensor([[-1.0, 2.0], [90.0, 90.0]]))
    assert out_of_order.isfinite().all() and out_of_order.exp()[0, 1] < 1e-5
    torch.testing.assert_close(out_of_order.exp().sum(1), torch.ones(2))
