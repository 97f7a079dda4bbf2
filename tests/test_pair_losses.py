"""Losses of images and reports against the numbers of the original codes and plain formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, logsigmoid, normalize

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.losses import blocks, convirt, gloria, info_nce, sigmoid
from vilmedic_ssl.losses.local_alignment import gloria_attention, local_similarity
from vilmedic_ssl.losses.pairs import soft_cross_entropies
from vilmedic_ssl.nets.words import cap_lens_of, words_of

ORACLES = Path(__file__).parent / "oracles"


def oracle_of(name):
    """Numbers of an original code, as tensors."""
    with np.load(ORACLES / f"{name}.npz") as oracle:
        return {key: torch.tensor(oracle[key]) for key in oracle if oracle[key].dtype.kind in "fi"}


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradients(loss, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    found = loss(*leaves)
    return [found.detach(), *torch.autograd.grad(found, leaves)]


def same(*groups):
    """(N, N) bool, which rows have equal texts."""
    groups = torch.tensor(groups)
    return groups[:, None] == groups


@pytest.mark.parametrize("name", ["a", "pairs", "n1", "zero_row"])
def test_convirt_equals_vilmedic(name):
    """Also with a row of zeros, and in each direction: text to image, image to text."""
    oracle = oracle_of(f"convirt_{name}")
    u, v = oracle["linguistic"], oracle["visual"]
    keys = {key: float(oracle[key]) for key in ("tau", "lambda_")}
    found = value_and_gradients(lambda u, v: convirt(u, v, **keys), u, v)
    for tensor, key in zip(found, ["loss", "grad_linguistic", "grad_visual"], strict=True):
        close(tensor, oracle[key])
    for direction, key in enumerate(("loss_l", "loss_v")):
        close(convirt(u, v, tau=keys["tau"], lambda_=direction), oracle[key].mean())


def test_convirt_survives_a_small_temperature_where_the_original_is_nan():
    oracle = oracle_of("convirt_fp32_overflow")
    assert oracle["loss_fp32_original"].isnan()
    pair = oracle["linguistic"], oracle["visual"]
    found = value_and_gradients(lambda u, v: convirt(u, v, tau=0.01, lambda_=0.75), *pair)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in found)
    close(found[0].double(), oracle["loss_fp64_original"], 1e-6)


def test_info_nce_is_what_vilmedics_should_have_been():
    """The original has no norm and forgets tau: ours on logits that are the bare dot products."""
    oracle = oracle_of("infonce_a")
    u, v = oracle["linguistic"], oracle["visual"]
    close(info_nce(u, v, tau=0.1), oracle["own_cosine_tau_loss"])

    def original(u, v):
        both = (soft_cross_entropies(x, torch.arange(6), None, None) for x in (u @ v.T, v @ u.T))
        return sum(each.mean() for each in both) / 2

    for tensor, key in zip(
        value_and_gradients(original, u, v),
        ["loss", "grad_linguistic", "grad_visual"],
        strict=True,
    ):
        close(tensor, oracle[key])
    close(original(normalize(u) / 0.1, normalize(v)), info_nce(u, v, tau=0.1))


def plain(u, v, tau, positives, left_out):
    """Text to image by its definition, row by row."""
    logits, found = cosine_similarity(u[:, None], v[None], dim=2) / tau, []
    for i, row in enumerate(logits):
        counts = [j for j in range(len(row)) if j == i or not left_out[i, j]]
        right = [j for j in counts if j == i or positives[i, j]]
        found.append(row[counts].logsumexp(0) - row[right].mean())
    return torch.stack(found).mean()


def test_further_right_answers_and_pairs_that_do_not_count():
    u, v, tau = rows(7, 5), rows(7, 5, seed=1), torch.tensor(0.3, dtype=torch.float64)
    right, out = same(0, 1, 0, 2, 3, 1, 0), same(0, 1, 2, 0, 1, 2, 0)
    none, itself = torch.zeros_like(right), torch.eye(7, dtype=torch.bool)
    for told in ((none, none), (right, none), (none, out), (right, out), (itself, out)):
        keys = dict(zip(("positives", "left_out"), told, strict=True))
        found = value_and_gradients(
            lambda u, v, tau, keys=keys: convirt(u, v, tau=tau, lambda_=0.7, **keys), u, v, tau
        )
        expected = value_and_gradients(
            lambda u, v, tau, told=told: (
                0.7 * plain(v, u, tau, *told) + 0.3 * plain(u, v, tau, *told)
            ),
            *(u, v, tau),
        )
        close(found, expected)


def decisions(u, v, log_tau, bias, positives, left_out):
    """SigLIP by its definition."""
    label = torch.where(positives | torch.eye(len(u), dtype=torch.bool), 1.0, -1.0)
    counts = ~left_out | torch.eye(len(u), dtype=torch.bool)
    logits = log_tau.exp() * cosine_similarity(u[:, None], v[None], dim=2) + bias
    return -logsigmoid(label * logits)[counts].sum() / len(u)


@pytest.mark.parametrize("limit", [1, 60, 2**22])
def test_sigmoid_equals_its_algorithm(limit, monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE", limit)
    learnt = [torch.tensor(x, dtype=torch.float64) for x in (2.3, -10.0)]
    given = rows(7, 5), rows(7, 5, seed=1), *learnt
    right, out = same(0, 1, 0, 2, 3, 1, 0), same(4, 1, 2, 0, 1, 2, 0)
    for told in ((right & False, out & False), (right, out & ~right)):
        keys = dict(zip(("positives", "left_out"), told, strict=True))
        found = value_and_gradients(
            lambda u, v, t, b, keys=keys: sigmoid(u, v, log_tau=t, bias=b, **keys), *given
        )
        expected = value_and_gradients(lambda *x, told=told: decisions(*x, *told), *given)
        close(found, expected)
    plainly = sigmoid(*given[:2], log_tau=2.3, bias=-10.0)
    close(plainly, decisions(*given, right & False, out & False))


@pytest.mark.parametrize("limit", [1, 60])
def test_blocks_equal_the_whole(limit, monkeypatch):
    given = rows(11, 5), rows(11, 5, seed=1), torch.tensor(0.2, dtype=torch.float64)
    whole = value_and_gradients(lambda u, v, tau: info_nce(u, v, tau=tau), *given)
    monkeypatch.setattr(blocks, "WHOLE", limit)
    close(value_and_gradients(lambda u, v, tau: info_nce(u, v, tau=tau), *given), whole)


LOSSES = {
    "convirt": lambda u, v: convirt(u, v, tau=0.1, lambda_=0.75),
    "info_nce": lambda u, v: info_nce(u, v, tau=0.1),
    "sigmoid": lambda u, v: sigmoid(u, v, log_tau=2.3, bias=-10.0),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_and_float32(loss):
    u, v = rows(9, 12), rows(9, 12, seed=1)
    wide = value_and_gradients(loss, u, v)
    for found, expected in zip(value_and_gradients(loss, u.float(), v.float()), wide, strict=True):
        assert found.dtype == torch.float32
        close(found.double(), expected, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(u.half(), v.half())
    close(half, loss(u.half().float(), v.half().float()))


def test_chance_and_floor():
    """Rows that say nothing but their text reach the floors; rows that say nothing, chance."""
    groups = same(0, 0, 0, 1, 1, 1, 2, 2, 2)
    z, nothing = torch.eye(3, dtype=torch.float64).repeat_interleave(3, 0), rows(1, 3).expand(9, 3)
    for told in ({}, {"positives": groups}):
        assert float(convirt(z, z, tau=0.01, lambda_=0.75, **told)) == pytest.approx(np.log(3))
    assert float(convirt(z, z, tau=0.01, lambda_=0.75, left_out=groups)) == pytest.approx(0)
    assert float(info_nce(nothing, nothing, tau=0.1)) == pytest.approx(np.log(9))

    keys = {"log_tau": np.log(50 - np.log(2)), "bias": -50.0}  # in a group, probability 1 / 3
    assert float(sigmoid(z, z, **keys)) == pytest.approx(np.log(3) + 2 * np.log(3 / 2))
    keys = {"log_tau": np.log(100), "bias": -50.0}
    for told in ("positives", "left_out"):
        assert float(sigmoid(z, z, **keys, **{told: groups})) == pytest.approx(0)
    keys = {"log_tau": 0.0, "bias": -np.log(8) - 1.0}
    chance = np.log(9) + 8 * np.log(9 / 8)
    assert float(sigmoid(nothing, nothing, **keys)) == pytest.approx(chance)


NAMES = ("img_global", "sent", "img_local", "words")


def gloria_keys(oracle):
    weights = ("local_loss_weight", "global_loss_weight")
    temperatures = zip(("temp1", "temp2", "temp3"), oracle["temps"].tolist(), strict=True)
    return {**dict(temperatures), **dict(zip(weights, oracle["weights"].tolist(), strict=True))}


@pytest.mark.parametrize("name", ["a", "b1", "weights"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_gloria_equals_the_authors_code(name, chunk):
    oracle = oracle_of(f"gloria_{name}")
    keys, counts = gloria_keys(oracle) | {"chunk": chunk}, oracle["cap_lens"]
    given = [oracle[key] for key in NAMES]
    found = value_and_gradients(lambda *x: gloria(*x, counts, **keys), *given)
    for tensor, key in zip(found, ["total", *(f"grad_{key}" for key in NAMES)], strict=True):
        close(tensor, oracle[key])
    maps = gloria_attention(*given[2:], counts, temp1=keys["temp1"])
    for i, n in enumerate(counts.tolist()):
        close(maps[i : i + 1, :n], oracle[f"att_{i}"])
        assert not maps[i, n:].any()


def test_each_part_of_glorias_loss():
    oracle = oracle_of("gloria_a")
    keys = gloria_keys(oracle)
    given = [oracle[key] for key in NAMES]
    for part in ("local", "global"):
        weights = {f"{x}_loss_weight": float(x == part) for x in ("local", "global")}
        found = gloria(*given, oracle["cap_lens"], **keys | weights)
        close(found, oracle[f"{part}_loss0"] + oracle[f"{part}_loss1"])


def test_attention_equals_the_authors_function():
    oracle = oracle_of("gloria_attention")
    context = oracle["context"]
    maps = gloria_attention(context, oracle["query"], torch.tensor([3, 3]), temp1=4.0)
    close(maps, oracle["maps"])
    close(torch.einsum("kdhw,klhw->kdl", context, maps), oracle["weighted"])


def test_zero_shot_equals_the_authors_function():
    """Theirs counts from the column behind [CLS]."""
    oracle = oracle_of("gloria_zero_shot")
    words = oracle["text_words"][:, :, 1:]
    near = local_similarity(oracle["img_local"], words, oracle["cap_lens"], temp1=4.0, temp2=5.0)
    far = cosine_similarity(oracle["img_global"][:, None], oracle["text_global"][None], dim=2)
    close(near, oracle["local_sim"])
    close(far, oracle["global_sim"])
    close(((near + far) / 2).amax(1), oracle["class_score"])


def plain_local(places, words, counts, temp1, temp2, agg):
    """Local scores by their definition, text by text."""
    flat, columns = places.flatten(2), []
    for text, n in zip(words, counts.tolist(), strict=True):
        e = text[:, :n]
        among_words = (flat.mT @ e).softmax(2)
        attended = flat @ (among_words * temp1).softmax(1)
        f = (temp2 * cosine_similarity(attended, e[None], dim=1)).exp()
        columns.append({"sum": f.sum(1), "mean": f.mean(1), "max": f.amax(1)}[agg].log())
    return torch.stack(columns, 1)


def images_and_words(n, m):
    """Of very different lengths, with something behind the last word."""
    counts = torch.tensor([1, 9, 3, 12, 3, 3, 7, 11])[:m]
    return rows(n, 16, 3, 4), 0.5 * rows(m, 16, 12, seed=1), counts


@pytest.mark.parametrize("agg", ["sum", "mean", "max"])
@pytest.mark.parametrize("chunk", [None, 1, 4, 9])
def test_local_similarity_and_gradients_equal_the_plain_form(agg, chunk):
    places, words, counts = images_and_words(5, 8)
    weight = rows(5, 8, seed=2)
    keys = {"temp1": 4.0, "temp2": 5.0, "agg": agg}

    def ours(v, e):
        return (local_similarity(v, e, counts, **keys, chunk=chunk) * weight.to(v)).sum()

    expected = value_and_gradients(
        lambda v, e: (plain_local(v, e, counts, **keys) * weight).sum(), places, words
    )
    close(value_and_gradients(ours, places, words), expected)
    single = value_and_gradients(ours, places.float(), words.float())
    for found, wide in zip(single, expected, strict=True):
        assert found.dtype == torch.float32
        assert float((found - wide).abs().max() / wide.abs().max()) < 1e-5


def test_an_image_or_a_word_of_zeros_has_no_direction():
    places, words, counts = images_and_words(3, 4)
    places[1], words[2, :, 0] = 0, 0
    given = rows(3, 16)[[0, 1, 2, 2]], rows(4, 16, seed=1), places[[0, 1, 2, 2]], words
    keys = gloria_keys(oracle_of("gloria_a"))
    found = value_and_gradients(lambda *x: gloria(*x, counts, **keys), *given)
    assert all(x.isfinite().all() for x in found)
    score = local_similarity(places, words, counts, temp1=4.0, temp2=5.0)
    assert not score[1].any()


def test_nothing_of_all_pairs_and_places_is_kept():
    places, words, counts = images_and_words(8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x):
        local_similarity(places.requires_grad_(), words, counts, temp1=4.0, temp2=5.0)
    assert max(kept) <= max(places.numel(), words.numel())
    assert max(kept) < 8 * int(counts.sum()) * places[0, 0].numel()


def test_gloria_with_further_right_answers_and_pairs_that_do_not_count():
    places, words, counts = images_and_words(6, 6)
    image, text = rows(6, 16, seed=2), rows(6, 16, seed=3)
    told = {"positives": same(0, 1, 0, 2, 3, 1), "left_out": same(0, 1, 2, 0, 1, 3)}
    weights = {"local_loss_weight": 0.5, "global_loss_weight": 2.0}
    keys = {"temp1": 4.0, "temp2": 5.0}
    found = gloria(image, text, places, words, counts, **keys, temp3=10.0, **weights, **told)
    near = plain_local(places, words, counts, **keys, agg="sum")
    far = cosine_similarity(image[:, None], text[None], dim=2)
    expected = 0
    for scores, weight in zip((near, far), weights.values(), strict=True):
        for logits in (10 * scores, 10 * scores.T):
            each = soft_cross_entropies(logits, torch.arange(6), **told)
            expected = expected + weight * each.mean()
    close(found, expected)
    plainly = gloria(image, text, places, words, counts, **keys, temp3=10.0, **weights)
    bare = (cross_entropy(10 * x, torch.arange(6)) for x in (near, near.T, far, far.T))
    close(plainly, sum(w * x for w, x in zip((0.5, 0.5, 2, 2), bare, strict=True)))


def test_gloria_in_half_precision_is_computed_in_float32():
    places, words, counts = images_and_words(4, 4)
    given = [x.half() for x in (rows(4, 16, seed=2), rows(4, 16, seed=3), places, words)]
    keys = gloria_keys(oracle_of("gloria_a"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gloria(*given, counts, **keys)
        near = local_similarity(*given[2:], counts, temp1=4.0, temp2=5.0)
        maps = gloria_attention(*given[2:], counts, temp1=4.0)
    assert found.dtype == torch.float32
    wide = [x.float() for x in given]
    close(found, gloria(*wide, counts, **keys))
    close(near, local_similarity(*wide[2:], counts, temp1=4.0, temp2=5.0))
    close(maps, gloria_attention(*wide[2:], counts, temp1=4.0))


def test_mistakes():
    places, words, counts = images_and_words(3, 3)
    with pytest.raises(UserError, match="'median' is not known; write sum, mean or max"):
        local_similarity(places, words, counts, temp1=4.0, temp2=5.0, agg="median")
    for wrong in (0, 13):
        with pytest.raises(ValueError, match="of 12 columns"):
            local_similarity(places, words, counts * 0 + wrong, temp1=4.0, temp2=5.0)


def word_numbers(oracle_name):
    """Numbers of words as GLoRIA's code counts them: behind the first [SEP] and for the last word
    of a text without one, there is nothing.
    """
    with np.load(ORACLES / f"{oracle_name}.npz") as oracle:
        vocabulary, ids = oracle["vocab"], oracle["input_ids"]
    numbers = torch.full(ids.shape, -1)
    for text, tokens in enumerate(vocabulary[ids].tolist()):
        word = -1
        for i, token in enumerate(tokens):
            word += not token.startswith("##")
            numbers[text, i] = word
            if token == "[SEP]":
                break
        else:
            numbers[text, numbers[text] == word] = -1
    return numbers


@pytest.mark.parametrize("specials", ["special", "nospecial", "full"])
def test_words_and_sentences_equal_the_authors_code(specials):
    """Equal in all three. How many words count is ours to say without [CLS] and [SEP]: theirs is
    one more than there are words, so that padding or nothing stands for the last.
    """
    oracle = oracle_of(f"gloria_aggregate_{specials}")
    numbers, hidden = word_numbers(f"gloria_aggregate_{specials}"), oracle["hidden_last_layers"]
    hidden = hidden.sum(0)  # over layers
    vectors = words_of(hidden, numbers).mT
    close(vectors, oracle["word_embeddings"][:, :, : vectors.shape[2]])
    assert not oracle["word_embeddings"][:, :, vectors.shape[2] :].any()
    close(vectors.sum(2) / hidden.shape[1], oracle["sentence_embedding"])  # padding included
    if specials == "special":
        assert cap_lens_of(numbers).tolist() == oracle["cap_lens"].tolist()


def test_the_last_word_is_not_lost():
    """As it is in GLoRIA's code where a text without [SEP] fills its positions."""
    hidden = rows(1, 4, 3)
    vectors = words_of(hidden, torch.tensor([[0, 1, 2, 2]]))
    close(vectors[0, 2], hidden[0, 2:].sum(0))


def test_how_many_words_count():
    assert cap_lens_of(torch.tensor([[0, 1, 1, 2], [0, 1, -1, -1]])).tolist() == [2, 1]
