"""The discrete VAE against the original's numbers, and what must hold for any."""

import dalle_oracle as oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods import VAE

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.losses.discrete import drawing_error
from vilmedic_ssl.nets.dvae import (
    DiscreteVAE,
    VAEShape,
    gumbel,
    kl_to_uniform,
    softened,
    temperature_at,
)

WAYS = {
    "soft": {},
    "hard": {"straight_through": True},
    "reinmax": {"straight_through": True, "reinmax": True},
    "smooth_l1": {"smooth_l1_loss": True},
}


def model(**keys):
    torch.manual_seed(0)
    return build({"proto": "VAE", **VAE, **keys})


def batch(n=3, channels=1):
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.rand(n, 1, channels, 32, 32, generator=generator),
        "seeds": torch.arange(n) + 5,
    }


def test_codes_and_drawings_are_the_originals():
    net, images = oracle.vae(), oracle.of("in/image")
    assert torch.allclose(net.logits(images), oracle.of("vae/logits"), atol=1e-6)
    codes = net.get_codebook_indices(images)
    assert torch.equal(codes, oracle.of("vae/indices"))
    assert torch.allclose(net.decode(codes), oracle.of("vae/decode"), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [0.9, 0.5])
def test_losses_and_gradients_are_the_originals(way, temperature):
    net, images = oracle.vae(), oracle.of("in/image")
    keys = {name: on for name, on in WAYS[way].items() if name != "smooth_l1_loss"}
    logits = net.logits(images)
    drawn = net.mixed(softened(logits, oracle.of("vae/gumbel"), temperature, **keys))
    error = drawing_error(drawn, net.normalised(images), smooth_l1=way == "smooth_l1").mean()
    weight = oracle.META["vae"]["kl_div_loss_weight"]
    loss = error + weight * kl_to_uniform(logits).sum()  # over the batch, as there
    loss.backward()
    name = f"vae/{way}/temp_{'default' if temperature == 0.9 else temperature}"
    for found, key in (
        (loss, "loss"),
        (drawn, "recon"),
        (net.codebook.weight.grad, "grad_codebook"),
        (net.encoder[0][0].weight.grad, "grad_enc0"),
    ):
        assert torch.allclose(found, oracle.of(f"{name}/{key}"), atol=1e-6), key


def test_the_older_version_gives_the_same():
    file = np.load(oracle.ORACLES / "dvae_tiny.npz")
    net = DiscreteVAE(VAEShape(8, 2, 6, 4, 4, 1, 3))
    net.load_state_dict({n[2:]: torch.from_numpy(file[n]) for n in file.files if n[:2] == "w."})
    of = {name: torch.from_numpy(file[name]) for name in file.files}
    images = of["image_uint8"].float() / 255
    logits, target = net.logits(images), net.normalised(images)
    assert torch.allclose(logits, of["logits"].float(), atol=1e-6)
    assert torch.equal(net.get_codebook_indices(images), of["codes"])
    assert torch.allclose(net.decode(of["codes"]), of["decoded_from_codes"].float(), atol=1e-6)
    noise = of["gumbel"].float()
    for temperature, hard, name in (
        (0.9, False, "loss_tau09"),
        (0.5, False, "loss_tau05"),
        (0.9, True, "loss_straight_through"),
    ):
        drawn = net.mixed(softened(logits, noise, temperature, straight_through=hard))
        assert F.mse_loss(drawn, target).item() == pytest.approx(float(of[name]), abs=1e-6)


def test_temperature_is_a_function_of_the_step():
    file = np.load(oracle.ORACLES / "vae_temperature.npz")
    for step, value in zip(file["step"], file["temperature"], strict=True):
        assert temperature_at(int(step), 0.9, 0.5, 1e-6) == pytest.approx(float(value), abs=1e-12)
    made = model()
    made.at_step(1000, 2000)
    at_1000 = made.temperature
    assert at_1000 == pytest.approx(0.89506359)
    made.eval()(**batch())  # an evaluation in between
    assert made.temperature == at_1000


def test_noise_follows_from_the_seed_alone():
    one, other = gumbel(torch.empty(2, 5, 4, 4), torch.tensor([7, 8])), torch.empty(3, 5, 4, 4)
    assert torch.equal(one[1], gumbel(other, torch.tensor([8, 1, 7]))[0])
    many = gumbel(torch.empty(1, 50, 40, 40), torch.tensor([0]))
    assert many.mean() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert many.var() == pytest.approx(np.pi**2 / 6, abs=0.05)


def test_evaluation_draws_from_the_codes_and_is_the_same_each_time():
    made, data = model().eval(), batch()
    first = made(**data)
    again = made(**{**data, "seeds": data["seeds"] + 1})
    assert first["loss"] == again["loss"]
    drawn = made.vae.decode(made.codes(data["images"][:, 0]))
    expected = F.mse_loss(drawn, made.vae.normalised(data["images"][:, 0]))
    assert first["loss"].item() == pytest.approx(expected.item(), abs=1e-7)
    shown = made.reconstruct(data["images"][:, 0], data["seeds"])
    assert torch.equal(shown["drawn from its codes"], (drawn * 0.5 + 0.5).clamp(0, 1))
    assert made.train()(**data)["loss"] != made(**{**data, "seeds": data["seeds"] + 1})["loss"]


def test_chance_is_the_loss_of_each_images_mean():
    data = batch()
    image = data["images"][:, 0] * 2 - 1
    expected = image.var((1, 2, 3), unbiased=False).mean().item()
    assert model()(**data)["chance"] == pytest.approx(expected, abs=1e-6)


def test_kl_of_images_and_of_the_batch():
    data = batch(4)
    plain, of_image, of_batch = (
        model(**keys)(**data)
        for keys in (
            {},
            {"kl_div_loss_weight": 0.1},
            {"kl_div_loss_weight": 0.1, "kl_reduction": "batch"},
        )
    )
    assert of_image["reconstruction"] == pytest.approx(float(plain["loss"].detach()), abs=1e-6)
    assert of_batch["kl"] == pytest.approx(4 * of_image["kl"], rel=1e-5)
    parts = of_image["reconstruction"] + 0.1 * of_image["kl"]
    assert float(of_image["loss"].detach()) == pytest.approx(parts, abs=1e-6)
    uniform = kl_to_uniform(torch.zeros(2, 12, 8, 8, dtype=torch.float64))
    assert torch.allclose(uniform, torch.zeros_like(uniform), atol=1e-12)
    certain = torch.full((1, 12, 8, 8), -1e4)
    certain[:, 3] = 0
    assert kl_to_uniform(certain).item() == pytest.approx(64 * np.log(12), rel=1e-5)


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS)
def test_both_implementations_are_one(keys):
    ours, theirs = (
        model(implementation=name, channels=3, **keys) for name in ("native", "dalle_pytorch")
    )
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():  # the same seed, the same first weights
        assert torch.equal(ours.state_dict()[name], tensor), name
    data = batch(channels=3)
    losses = [made(**data)["loss"] for made in (ours, theirs)]
    assert torch.allclose(*losses, atol=1e-7)
    for loss in losses:
        loss.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6), name
    assert torch.equal(ours.codes(data["images"][:, 0]), theirs.codes(data["images"][:, 0]))


def test_grey_images_are_repeated_for_three_channels():
    made, data = model(channels=3).eval(), batch()
    three = data["images"].expand(-1, -1, 3, -1, -1)
    assert made(**data)["loss"] == made(**{**data, "images": three})["loss"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"image_size": 48}, "write a power of two"),
        ({"num_layers": 6}, "halvings leave nothing of 32 pixels; write 5 or less"),
        ({"num_tokens": 0}, "num_tokens: 0; write a larger number"),
        ({"channels": 2}, "write 1 or 3"),
        ({"temperature": 0.0}, "temperature: 0.0; write a number above 0"),
        ({"temperature": 0.1}, "0.1 is below temperature_end"),
        ({"reinmax": True}, "needs straight_through=true"),
        ({"anneal_rate": -1.0}, "write 0 or more"),
    ],
)
def test_wrong_keys_are_one_sentence(keys, told):
    with pytest.raises(ConfigError, match=told):
        model(**keys)


def test_wrong_images_are_one_sentence():
    made, images = model(), batch()["images"][:, 0]
    for wrong, told in (
        (images[..., :16], "32 x 16 pixels, the VAE takes 32 x 32"),
        (images * 2 - 1, r"values from 0 to 1 and got -\d.*write mean: \[0\]"),
        (images.expand(-1, 3, -1, -1), "3 channels, the VAE takes 1; write channels: gray"),
    ):
        with pytest.raises(UserError, match=told):
            made.codes(wrong)
