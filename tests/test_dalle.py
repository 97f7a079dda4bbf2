"""DALLE against the original's numbers, and what must hold for any."""

import dalle_oracle as oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods import SMALL, reports

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.losses.discrete import token_entropy
from vilmedic_ssl.nets.dalle import Dalle
from vilmedic_ssl.nets.dalle_attention import attention_mask, shifted
from vilmedic_ssl.nets.dalle_sampling import Sampling, draw_codes, draw_text, nucleus, top_k
from vilmedic_ssl.nets.dalle_transformer import Sublayer, TransformerShape
from vilmedic_ssl.nets.dvae import DiscreteVAE, VAEShape

GREEDY = Sampling(filter_thres=0.9999)
TEXT = oracle.of("in/text")


def net(**keys):
    torch.manual_seed(0)
    shape = TransformerShape(**{"dim": 16, "depth": 2, "heads": 2, "dim_head": 12, **keys})
    made = Dalle(DiscreteVAE(VAEShape(16, 2, 10, 8, 8, 0, 1)), shape, 20, 5)
    with torch.no_grad():  # layers add little at first
        for name, p in made.named_parameters():
            p.mul_(10 if name.endswith(".scale") else 2)
    return made


def sequences(n=3):
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(1, 20, (n, 5), generator=generator)
    text[1:, 3:] = 0
    return text, torch.randint(0, 10, (n, 16), generator=generator)


def some_number(hidden):
    """A loss of normalised activations, whose squares always add up to the same."""
    return (hidden * torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype)).pow(3).sum()


def model(implementation="native", **keys):
    torch.manual_seed(0)
    small = SMALL["DALLE"]
    dalle = {**small["dalle"], "dim_head": 12, **keys}
    node = {"proto": "DALLE", "vae": small["vae"], "dalle": dalle}
    return build({**node, "implementation": implementation})


def batch(n=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 1, 32, 32, generator=generator)
    return {"images": images, "seeds": torch.arange(n), **reports(n)}


@pytest.mark.parametrize("case", oracle.CASES)
def test_every_case_is_the_originals(case):
    made, images = oracle.dalle(case), oracle.of("in/image")
    codes, text = made.vae.get_codebook_indices(images), made.padded(TEXT)
    words, places, _ = made(text, codes)
    expected = oracle.of(f"dalle/{case}/logits")
    kept, length = made.text_ids, made.text_seq_len
    assert torch.allclose(words, expected[:, :length, :kept], atol=2e-6)
    assert torch.allclose(places, expected[:, length:, kept:], atol=2e-6)
    assert (expected[:, :length, kept:] < -9e3).all()  # those are masked there
    loss = (token_entropy(words, text).mean() + 7 * token_entropy(places, codes).mean()) / 8
    assert loss.item() == pytest.approx(float(oracle.FILE[f"dalle/{case}/loss"]), abs=1e-6)
    last = made(text, codes[:, :5])[1][:, -1]
    assert torch.allclose(last, oracle.of(f"dalle/{case}/logits_prefix5_last")[:, kept:], atol=2e-6)
    for cached in (True, False):
        for begin, name in ((0, "generate_greedy"), (oracle.PRIMED, "generate_greedy_primed")):
            if f"dalle/{case}/{name}" not in oracle.FILE:
                continue
            first = codes[:, :begin] if begin else None
            drawn = draw_codes(made, TEXT, GREEDY, first_Bn=first, use_cache=cached)
            shown = made.vae.decode(drawn)
            assert torch.allclose(shown, oracle.of(f"dalle/{case}/{name}"), atol=1e-6), name


def test_all_gradients_are_the_originals():
    made = oracle.dalle("mixed").train()
    text, codes = made.padded(TEXT), made.vae.get_codebook_indices(oracle.of("in/image"))
    words, places, _ = made(text, codes)
    loss = (token_entropy(words, text).mean() + 7 * token_entropy(places, codes).mean()) / 8
    loss.backward()
    learned = {n: p.grad for n, p in made.named_parameters() if p.requires_grad}
    for name, grad in learned.items():
        expected = oracle.of(f"dalle/mixed/grad/{name}")
        assert (grad - expected).abs().max() < 1e-5 * expected.abs().max(), name


def test_draws_are_the_originals():
    made = oracle.dalle("full")
    torch.manual_seed(oracle.META["seed_generate"])
    drawn = made.vae.decode(draw_codes(made, TEXT, Sampling(filter_thres=0.5)))
    assert torch.allclose(drawn, oracle.of("dalle/full/generate_seed0_thres0.5"), atol=1e-6)
    logits = oracle.of("sample/logits")
    for share in (0.5, 0.75, 0.9):
        kept = top_k(logits, max(1, int((1 - share) * logits.shape[1])))
        assert torch.equal(kept, oracle.of(f"sample/top_k_{share}"))


def test_loss_of_the_older_version():
    file = {k: torch.from_numpy(v) for k, v in np.load(oracle.ORACLES / "dalle_loss.npz").items()}
    made = Dalle(DiscreteVAE(VAEShape(8, 2, 6, 4, 4, 0, 3)), TransformerShape(dim=8), 10, 5)
    text = made.padded(file["text_in"])
    assert torch.equal(F.pad(text, (1, 0)), file["text_with_bos_and_unique_pads"])
    words, places = file["logits"][:, :5, :15].float(), file["logits"][:, 5:, 15:].float()
    found = token_entropy(words, text).mean(), token_entropy(places, file["image_tokens"]).mean()
    for value, name in zip(found, ("loss_text", "loss_img"), strict=True):
        assert value.item() == pytest.approx(float(file[name]), abs=1e-6)
    total = (found[0] + 7 * found[1]) / 8
    assert total.item() == pytest.approx(float(file["loss"]), abs=1e-6)


@pytest.mark.parametrize("kind", oracle.MIXED)
def test_nobody_sees_the_future_and_codes_see_all_text(kind):
    mask = attention_mask(kind, 6, 4)
    assert mask.shape == (21, 21) and not mask.triu(1).any() and mask.diagonal().all()
    assert mask[6:, :6].all()
    if kind != "full":
        places = {"axial_row": [12, 13, 14], "axial_col": [6, 10, 14], "conv_like": None}[kind]
        seen = (mask[14, 6:].nonzero()[:, 0] + 6).tolist()  # row 2, column 0
        assert seen == (places if places and kind == "axial_col" else seen)
        assert kind != "axial_row" or seen == [14]


@pytest.mark.parametrize("n", [1, 4, 6, 7, 9, 16, 21])
def test_token_shift_and_its_gradient(n):
    x = torch.randn(2, n, 8, dtype=torch.float64, requires_grad=True)
    out = shifted(x, 6, 4)
    for at in range(n):
        row = x[:, at].clone()
        if at < 6:
            row[:, :4] = x[:, at - 1, :4] if at else 0
        else:
            code = at - 6
            row[:, :2] = x[:, at - 4, :2] if code >= 4 else 0
            row[:, 2:4] = x[:, at - 1, 2:4] if code % 4 else 0
        assert torch.equal(out[:, at], row), at
    assert torch.autograd.gradcheck(lambda y: shifted(y, 6, 4), x)


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_a_growing_sequence_is_the_whole_one(reversible, rotary, shift):
    keys = {"reversible": reversible, "rotary_emb": rotary, "shift_tokens": shift}
    made = net(depth=4, attn_types=oracle.MIXED, **keys).double().eval()
    text, codes = sequences()
    text = made.padded(text)
    with torch.no_grad():
        whole = made.hidden(text, codes)
        x = made.embedded(text, codes)[:, : whole.shape[1]]
        for first in (1, 3, 6, 9):
            cache = made.cache(3)
            parts = [made.grown(x[:, :first], cache)]
            parts += [made.grown(x[:, at : at + 1], cache) for at in range(first, x.shape[1])]
            assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10), first


def test_reversible_layers_give_the_gradient_of_what_they_compute():
    made = net(reversible=True, depth=3, ff_dropout=0.3, attn_dropout=0.2).double().train()
    text, codes = made.padded(sequences()[0]), sequences()[1]

    def gradients(plain):
        made.zero_grad()
        torch.manual_seed(3)
        if plain:  # the same layers, one after the other, every activation kept
            x = made.embedded(text, codes)[:, :-1]
            one, other = x, x
            turn = made.transformer._turn(0, x.shape[1])
            for f, g in made.transformer.pairs():
                for layer, more in ((f, (turn, None)), (g, ())):
                    step = made.transformer._step(layer, *more)
                    one, other = other, one + step(other)
            hidden = made._normed((one + other) / 2)
        else:
            hidden = made.hidden(text, codes)
        some_number(hidden).backward()
        return {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}

    plain, found = gradients(True), gradients(False)
    assert set(plain) == set(found)
    for name, grad in plain.items():
        assert torch.allclose(found[name], grad, atol=1e-9), name


def test_checkpointed_layers_change_nothing():
    found = []
    for keys in ({}, {"checkpoint_layers": True}):
        made = net(ff_dropout=0.3, **keys).train()
        text, codes = sequences()
        torch.manual_seed(4)
        some_number(made.hidden(made.padded(text), codes)).backward()
        found.append([p.grad for p in made.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


VARIANTS = {
    "plain": {},
    "mixed": {"attn_types": oracle.MIXED, "depth": 4},
    "reversible": {"reversible": True},
    "otherwise": {
        **{"rotary_emb": False, "shift_tokens": False, "sandwich_norm": True, "stable": True},
        "share_input_output_emb": True,
    },
}


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
def test_both_implementations_are_one(keys):
    keys = {**keys, "text_dropout": 0.3}
    ours, theirs = (model(name, **keys) for name in ("native", "dalle_pytorch"))
    own = ours.state_dict()
    assert set(own) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():  # the same seed, the same first weights
        assert torch.equal(own[name], tensor), name
    data, losses = batch(), []
    for made in (ours.train(), theirs.train()):
        losses.append(made(**data)["loss"])
        losses[-1].backward()
    assert torch.allclose(*losses, atol=1e-6)
    largest = max(p.grad.abs().max() for p in theirs.parameters() if p.grad is not None)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            assert (mine.grad - other.grad).abs().max() < 5e-6 * largest, name
    tokens = data["input_ids"], data["attention_mask"]
    for how in (Sampling(filter_thres=0.5), Sampling(top_p=0.8, cond_scale=3.0, temperature=0.7)):
        drawn = []
        for made in (ours.eval(), theirs.eval()):
            torch.manual_seed(6)
            drawn.append(made.generate(*tokens, how)[1])
            drawn.append(made.complete(data["input_ids"][:, :3], how, end=7))
        assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])


def test_guidance_compares_with_a_blank_text_and_leaves_the_prompt_alone():
    made = net().eval()
    text, _ = sequences()
    before = text.clone()
    how = Sampling(filter_thres=1.0, cond_scale=2.0)
    drawn = draw_codes(made, text, how)
    assert torch.equal(text, before)
    known, blank = made.padded(text), made.padded(torch.zeros_like(text))
    for at in range(16):
        with_text, without = (made(t, drawn[:, :at])[1][:, -1] for t in (known, blank))
        best = (without + 2 * (with_text - without)).argmax(1)
        assert torch.equal(drawn[:, at], best)


def test_nucleus_keeps_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for p, kept in ((0.4, 1), (0.5, 1), (0.6, 2), (0.9, 3), (1.0, 4)):
        assert int(nucleus(logits, p).isfinite().sum()) == kept


def test_texts_end_where_they_end():
    made = net().eval()
    torch.manual_seed(0)
    begin = sequences()[0][:, :2]
    drawn = draw_text(made, begin.repeat(20, 1), Sampling(filter_thres=0), end=7, never=3)
    assert torch.equal(drawn[:, :2], begin.repeat(20, 1))
    assert (drawn[:, 2:] != 3).all() and drawn.max() < 20
    for line in drawn.tolist():
        rest = line[2:]
        stop = next((i for i, token in enumerate(rest) if token in (0, 7)), len(rest) - 1)
        assert not any(rest[stop + 1 :])
    assert {0, 7} & set(drawn[:, 2:].flatten().tolist())


def test_padding_has_a_token_for_each_place_whatever_the_tokenizer_pads_with():
    made = model(pad_token_id=3)
    ids = torch.tensor([[2, 0, 9, 3, 3]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    read = made.dalle.padded(made.ids(ids, mask))
    assert read.tolist() == [[2, 3, 9, 503, 504, 505, 506, 507, 508]]  # 0 is a word, 3 is free
    by_accident = model(pad_token_id=1, unique_pads=False)
    read = by_accident.dalle.padded(by_accident.ids(ids, mask))
    assert read.tolist() == [[2, 501, 9, 1, 1, 1, 1, 1, 1]]


def test_blank_texts_follow_from_the_seed_alone():
    made = model(text_dropout=0.5)
    blank = made._blank(torch.arange(200))
    assert torch.equal(blank[50:60], made._blank(torch.arange(50, 60)))
    assert 0.35 < blank.float().mean() < 0.65
    data = batch()
    assert made.eval()(**data)["loss"] == made(**{**data, "seeds": data["seeds"] + 1})["loss"]


def test_parts_and_chance():
    made, data = model(loss_img_weight=3.0, text_dropout=0.0), batch()
    out = made(**data)
    total = (out["text_loss"] + 3 * out["image_loss"]) / 4
    assert float(out["loss"].detach()) == pytest.approx(total, abs=1e-6)
    assert out["chance"] == pytest.approx((np.log(509) + 3 * np.log(12)) / 4)


def test_likelihoods_are_those_of_the_loss():
    made, data = model(text_dropout=0.0).eval(), batch(3)
    codes = made.codes(data["images"][:, 0])
    ids = made.ids(data["input_ids"], data["attention_mask"])
    text_NM, image_NM = made.of_images(codes, ids)
    out = made(**data)
    assert -text_NM.diagonal().mean() / 9 == pytest.approx(out["text_loss"], abs=1e-5)
    assert -image_NM.diagonal().mean() / 64 == pytest.approx(out["image_loss"], abs=1e-5)
    assert torch.allclose(text_NM[0], text_NM[1], atol=1e-4)  # looks at no image
    read = data["input_ids"], data["attention_mask"], data["words"]
    found = made.similarity(data["images"][:, 0], *read)
    assert torch.allclose(found, image_NM / 64)
    guided = model(text_dropout=0.2).eval()
    blank = made.of_images(codes, torch.zeros_like(ids[:1]))[1]
    assert torch.allclose(guided.similarity(data["images"][:, 0], *read), (image_NM - blank) / 64)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"dim_head": 4}, "rotary positions need 6 channels"),
        ({"dim": 18}, "token shift needs a multiple of 4"),
        ({"attn_types": []}, "name one kind at least"),
        ({"attn_types": ["sparse"]}, "attn_types"),
        ({"reversible": True, "checkpoint_layers": True}, "keep one"),
        ({"shared_attn_ids": [0, 0]}, "layers with number 0 are full and axial_row"),
        ({"ff_dropout": 1.0}, "ff_dropout: write a share"),
        ({"text_dropout": 1.0}, "text_dropout: 1.0; write a share"),
        ({"loss_img_weight": 0.0}, "write a number above 0"),
        ({"num_text_tokens": None}, "only training from a config finds them"),
    ],
)
def test_wrong_keys_are_one_sentence(keys, told):
    with pytest.raises(ConfigError, match=told):
        model(**keys)


def test_what_the_package_has_not_is_one_sentence():
    for keys, told in (({"dim_head": 6}, "need 9"), ({"checkpoint_layers": True}, "reversible")):
        with pytest.raises(ConfigError, match=told):
            model("dalle_pytorch", **keys)


@pytest.mark.parametrize("width", [12, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_without_a_fused_kernel_and_heads_of_odd_width(width, dtype):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = []
    for kernels in ([SDPBackend.MATH], [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        made = net(dim_head=width)
        made = made.double() if dtype == torch.float64 else made
        text, codes = sequences()
        half = dtype == torch.bfloat16
        with sdpa_kernel(kernels), torch.autocast("cpu", torch.bfloat16, enabled=half):
            some_number(made.hidden(made.padded(text), codes)).backward()
        found.append(made.transformer.pairs()[0][0].inner.to_qkv.weight.grad)
    assert (found[0] - found[1]).abs().max() < (0.05 if half else 1e-4) * found[1].abs().max()


def test_a_process_without_samples_does_not_fail():
    for keys in ({}, {"reversible": True}):
        made = model(**keys).train()
        none = {name: value[:0] for name, value in batch().items()}
        assert made(**none, rows_only=True)[1].shape == (0,)


def test_codes_do_not_depend_on_mixed_precision():
    made, images = model(), batch(8)["images"][:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.codes(images), made.codes(images.clone()))
        mixed = made.codes(images)
    assert torch.equal(mixed, made.codes(images))


def test_ids_and_lengths_out_of_range_are_one_sentence():
    made, data = model(), batch()
    for wrong in (500, -1):
        ids = data["input_ids"].clone()
        ids[0, 0] = wrong
        with pytest.raises(
            UserError, match=f"token id {wrong}, and there are vectors for 0 to 499"
        ):
            made(**{**data, "input_ids": ids})
    longer = {k: data[k].repeat(1, 2) for k in ("input_ids", "attention_mask")}
    with pytest.raises(UserError, match="a text of 18 tokens, and it reads 9"):
        made(**{**data, **longer})
    for keys in ({"filter_thres": 1.5}, {"top_p": 0.0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(keys))):
            Sampling(**keys)


def test_layers_start_small_and_smaller_with_depth():
    inner = torch.nn.Linear(4, 4)
    starts = [Sublayer(4, inner, n, 0, sandwich=False).scale[0, 0, 0].item() for n in (1, 19, 25)]
    assert starts == pytest.approx([0.1, 1e-5, 1e-6])
