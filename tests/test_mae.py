"""MAE: masks from seeds alone, the loss by hand, patches and back, pictures."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.models.mae import moments
from vilmedic_ssl.nets.masked import encode_visible, from_patches, shuffled, sine_cosine, to_patches
from vilmedic_ssl.post_processing.plot_reconstruction import plot_reconstruction

NO_POSITIONS = {"backbone": "test_vit", "options": {"pos_embed": "none"}}
SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def mae(size=32, channels=1, options=None, **keys):
    """A small one with 8-pixel patches, in float64."""
    torch.manual_seed(0)
    options = {"img_size": size, "patch_size": 8, **(options or {})}
    cnn = {"backbone": "test_vit", "in_chans": channels, "options": options}
    return build({"proto": "MAE", "cnn": cnn, **SMALL, **keys}).double().train()


def batch(n=6, size=(32, 32), channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, channels, *size, generator=generator, dtype=torch.float64)
    return {"images": images, "seeds": torch.randint(2**62, (n,), generator=generator)}


def test_masks_depend_on_the_seed_alone():
    seeds = torch.tensor([3, 2**63 - 1, 0, 77, 3])
    order = shuffled(seeds, 64)
    assert torch.equal(order.sort(1).values, torch.arange(64).expand(5, -1))
    assert torch.equal(order[0], order[4]) and not torch.equal(order[0], order[3])
    assert torch.equal(shuffled(seeds.flip(0), 64), order.flip(0))
    cut = [shuffled(part, 64) for part in seeds.tensor_split(3)]
    assert torch.equal(torch.cat(cut), order)


def test_splitmix64():
    """The first outputs of the published generator from seed 1234567 sort positions so."""
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    first += [4593380528125082431, 16408922859458223821]
    signed = [x - 2**64 if x >= 2**63 else x for x in first]
    assert shuffled(torch.tensor([1234567]), 5)[0].tolist() == np.argsort(signed).tolist()


def test_masks_are_uniform():
    order = shuffled(torch.arange(4000), 16)
    masked = torch.zeros(4000, 16).scatter(1, order[:, 4:], 1.0).mean(0)
    assert (masked - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 4000)
    together = (order[:, :1] == 0).double().mean() - 1 / 16
    assert together.abs() < 5 * math.sqrt(1 / 16 / 4000)


@pytest.mark.parametrize(("ratio", "masked"), [(0.75, 12), (0.5, 8), (0.9, 14)])
def test_mask_ratio_is_exact(ratio, masked):
    model, data = mae(mask_ratio=ratio), batch()
    visible, hidden = model._split(data["images"][:, 0], data["seeds"])
    assert visible.shape == (6, 16 - masked) and hidden.shape == (6, masked)


def test_patches_and_back():
    images = torch.rand(2, 3, 24, 40)
    patches = to_patches(images, (8, 4))
    assert patches.shape == (2, 30, 96)
    assert torch.equal(patches[1, 11], images[1, :, 8:16, 4:8].permute(1, 2, 0).flatten())
    assert torch.equal(from_patches(patches, (8, 4), (3, 10)), images)


def test_positions_tell_row_and_column():
    x = sine_cosine((3, 5), 16)
    assert x.shape == (15, 16) and len(x.unique(dim=0)) == 15
    assert torch.equal(x[0, :8], x[4, :8]) and torch.equal(x[1, 8:], x[11, 8:])
    omega = 10000 ** (-torch.arange(4) / 4)
    assert torch.allclose(
        x[7], torch.cat([f(v * omega) for v in (1, 2) for f in (torch.sin, torch.cos)])
    )


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"no_embed_class": True}])
def test_fixed_positions(options):
    model = mae(fixed_positions=True, options=options)
    place = model.cnn.net.pos_embed
    assert torch.equal(place[0, -16:].float(), sine_cosine((4, 4), 64))
    assert (place[0, :-16] == 0).all() and not place.requires_grad
    model(**batch())["loss"].backward()
    assert place.grad is None and mae().cnn.net.pos_embed.requires_grad


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"reg_tokens": 2}])
def test_encoder_with_every_patch_visible_is_timms(options):
    model, images = mae(options=options), batch()["images"][:, 0]
    net, order = model.cnn.net, torch.arange(16).expand(6, -1)
    expected = net.fc_norm(net.forward_features(images))
    assert torch.allclose(encode_visible(net, images, order), expected, atol=1e-12)
    swapped = encode_visible(net, images, order.flip(1))
    first = net.num_prefix_tokens
    assert torch.allclose(swapped[:, first:].flip(1), expected[:, first:], atol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_by_hand(normalise):
    model, data = mae(normalise_pixels=normalise), batch()
    images = data["images"][:, 0]
    visible, hidden = model._split(images, data["seeds"])
    tokens = encode_visible(model.cnn.net, images, visible)
    drawn = model.decoder(tokens, visible, hidden, (4, 4)).detach().numpy()
    losses, plain = [], []
    for b in range(6):
        for k, place in enumerate(hidden[b].tolist()):
            row, column = 8 * (place // 4), 8 * (place % 4)
            target = images[b, 0, row : row + 8, column : column + 8].numpy().ravel()
            if normalise:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            losses.append(((drawn[b, k] - target) ** 2).mean())
            plain.append(((target - target.mean()) ** 2).mean())
    out = model(**data)
    assert out["loss"].item() == pytest.approx(np.mean(losses), abs=1e-12)
    assert out["chance"] == pytest.approx(np.mean(plain), abs=1e-12)
    assert not normalise or out["chance"] == pytest.approx(63 / 64, abs=1e-4)


def test_masked_pixels_do_not_reach_the_encoder():
    model, data = mae(), batch()
    images = data["images"][:, 0].requires_grad_()
    visible, hidden = model._split(images, data["seeds"])
    encode_visible(model.cnn.net, images, visible).square().sum().backward()
    reached = to_patches(images.grad, (8, 8)).abs().sum(-1)
    assert (reached.gather(1, hidden) == 0).all() and (reached.gather(1, visible) > 0).all()


def gradients(model, data, chunk):
    model.zero_grad()
    out = gradient_cache.backward(
        model, data, chunk=chunk, cast=contextlib.nullcontext, scale=lambda x: x
    )
    return out, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_chunks_equal_the_whole():
    model, data = mae(), batch(7)
    whole, expected = gradients(model, data, None)
    assert all(grad.abs().sum() > 0 for grad in expected.values())  # all take part
    parts, found = gradients(model, data, 3)
    assert float(parts["loss"]) == pytest.approx(float(whole["loss"]), abs=1e-12)
    assert parts["chance"] == pytest.approx(whole["chance"], abs=1e-12)
    for name, grad in expected.items():
        assert torch.allclose(found[name], grad, atol=1e-12), name


def test_grey_images_and_other_shapes():
    model, data = mae(channels=3, options={"dynamic_img_size": True}), batch(2, (24, 40))
    assert model(**data)["visual"].shape == (2, 64)
    shown = model.eval().reconstruct(data["images"][:, 0], data["seeds"])
    image, masked, drawn = shown.values()
    assert image.shape == masked.shape == drawn.shape == (2, 1, 24, 40)


def test_reconstruct():
    model, data = mae(), batch()
    shown = model.eval().reconstruct(data["images"][:, 0], data["seeds"])
    image, masked, drawn = shown.values()
    hidden = model._split(image, data["seeds"])[1]
    parts = [to_patches(x, (8, 8)) for x in (image, masked, drawn)]
    is_hidden = torch.zeros(6, 16, dtype=torch.bool).scatter(1, hidden, True)
    assert (parts[1][is_hidden] == 0).all()
    assert torch.equal(parts[1][~is_hidden], parts[0][~is_hidden])
    assert torch.equal(parts[2][~is_hidden], parts[0][~is_hidden])
    mean, deviation = moments(parts[0])
    error = ((parts[2] - parts[0]) / deviation).square().mean(-1)[is_hidden].mean()
    assert float(error) == pytest.approx(model(**data)["loss"].item(), abs=1e-12)


def test_no_decay_names_parameters():
    model = mae(options={"reg_tokens": 1})
    assert model.no_decay() == {
        "cnn.net.pos_embed",
        "cnn.net.cls_token",
        "cnn.net.reg_token",
        "decoder.mask_token",
    }


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"cnn": {"backbone": "test_resnet"}}, "plain vision transformer"),
        ({"cnn": {"backbone": "test_vit", "output_layer": "classifier"}}, "output_layer"),
        ({"cnn": {"backbone": "test_vit", "options": {"patch_drop_rate": 0.5}}}, "mask_ratio"),
        ({"cnn": {"backbone": "test_vit", "dropout_out": 0.5}}, "dropout_out and permute"),
        ({"cnn": {"backbone": "test_vit", "permute": "no_permute"}}, "dropout_out and permute"),
        ({"fixed_positions": True, "cnn": NO_POSITIONS}, "fixed_positions"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"decoder_dim": 18}, "multiple of 4"),
        ({"decoder_depth": 0}, "decoder"),
    ],
)
def test_wrong_keys(keys, told):
    with pytest.raises(ConfigError, match=told):
        build({"proto": "MAE", "cnn": {"backbone": "test_vit"}, **SMALL, **keys})


@pytest.mark.parametrize(
    ("size", "channels", "options", "told"),
    [
        ((40, 40), 1, {"dynamic_img_size": False}, "model.cnn takes 32 x 32"),
        ((36, 36), 1, {"dynamic_img_size": True}, "whole number of patches"),
        ((8, 8), 1, {"dynamic_img_size": True}, "none visible"),
        ((32, 32), 3, {}, "in_chans"),
    ],
)
def test_wrong_images(size, channels, options, told):
    with pytest.raises(UserError, match=told):
        mae(options=options)(**batch(2, size, channels))


class Pictures:
    """As much of a dataset as the plug-in looks at; its pictures are normalised by 0.5 and 0.25."""

    def __init__(self, images):
        self.images = images

    def picture(self, index):
        return self.images[index]


def features(model, images):
    return SimpleNamespace(
        models=[model],
        splits=["test"],
        seed=0,
        tag="best-1_0",
        get=lambda split: SimpleNamespace(ids=list("abcdef")),
        dataset=lambda split: Pictures(images),
        inputs=lambda split, chosen: (images[chosen] - 0.5) / 0.25,
    )


def test_plot_reconstruction(tmp_path):
    from matplotlib.image import imread

    images = batch()["images"][:, 0]
    ((caption, path),) = plot_reconstruction(features(mae().eval(), images), tmp_path, images=3)
    assert path.is_file() and path.name == "plot_reconstruction_best-1_0_test.png"
    assert "test" in caption and imread(path).std() > 0.1


def test_a_model_that_cannot_reconstruct(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="Linear does not reconstruct images"):
        list(plot_reconstruction(features(model, batch()["images"][:, 0]), tmp_path))
