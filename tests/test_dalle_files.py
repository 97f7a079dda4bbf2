"""VAEs and DALLEs in files: of ours, of ViLMedic, of dalle-pytorch."""

from operator import lt

import pytest
import resume
import torch
from methods import SMALL, VAE
from omegaconf import OmegaConf

from vilmedic_ssl import AutoModel, build
from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import ConfigError, Unobtainable, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.dalle_files import read_vae, write_dalle_pytorch
from vilmedic_ssl.executors.init_weights import start_from
from vilmedic_ssl.experiment.vae import pin_vae
from vilmedic_ssl.nets.dalle_package import package

SIZES = {**VAE, "channels": 3}
THEIRS = {**SMALL["DALLE"]["dalle"], "dim_head": 12}
THEIRS.pop("text_dropout")


@pytest.fixture
def their_dalle():
    torch.manual_seed(0)
    vae = package().DiscreteVAE(**SIZES)
    return package().DALLE(vae=vae, **{**THEIRS, "attn_types": tuple(THEIRS["attn_types"])})


def saved_by_their_scripts(dalle, folder):
    """vae.pt and dalle.pt as train_vae.py and train_dalle.py write them."""
    vae, whole = folder / "vae.pt", folder / "dalle.pt"
    torch.save({"hparams": SIZES, "weights": dalle.vae.state_dict()}, vae)
    hparams = {**THEIRS, "reversible": False, "loss_img_weight": 7}
    beside = {"epoch": 3, "version": "1.6.6", "vae_class_name": "DiscreteVAE"}
    content = {"hparams": hparams, "vae_params": SIZES, "weights": dalle.state_dict(), **beside}
    torch.save(content, whole)
    return vae, whole


def test_their_checkpoints_are_read_and_ours_are_theirs(their_dalle, tmp_path):
    vae, whole = saved_by_their_scripts(their_dalle, tmp_path)
    model, processor = AutoModel.from_pretrained(whole)
    text = torch.randint(1, 500, (2, 9), generator=torch.Generator().manual_seed(3))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    expected = their_dalle.eval()(text.clone(), images, return_loss=True)
    mask = torch.ones_like(text)
    found = model(images[:, None], input_ids=text, attention_mask=mask, seeds=torch.arange(2))
    assert torch.allclose(found["loss"], expected, atol=1e-6)
    assert processor.transform.mean == [0.0] and processor.transform.crop == 32
    back = torch.load(write_dalle_pytorch(model, tmp_path / "back.pt"), weights_only=True)
    again = package().DALLE(
        vae=package().DiscreteVAE(**back["vae_params"]),
        **{**back["hparams"], "attn_types": tuple(back["hparams"]["attn_types"])},
    )
    again.load_state_dict(back["weights"])
    assert torch.equal(again.eval()(text.clone(), images, return_loss=True), expected)
    drawer, _ = AutoModel.from_pretrained(vae)
    assert torch.equal(drawer.codes(images), their_dalle.vae.get_codebook_indices(images))
    back = torch.load(write_dalle_pytorch(drawer, tmp_path / "back-vae.pt"), weights_only=True)
    package().DiscreteVAE(**back["hparams"]).load_state_dict(back["weights"])


@pytest.mark.parametrize("ours", [True, False])
def test_layers_beyond_the_last_are_named(ours, tmp_path, capsys):
    deep = build({"proto": "DALLE", "vae": SIZES, "dalle": {**THEIRS, "depth": 3}})
    path = tmp_path / "deep.pth"
    torch.save(deep.state_dict() if ours else {"weights": deep.dalle.state_dict()}, path)
    start_from(deep, path)
    assert "warning" not in capsys.readouterr().err
    start_from(build({"proto": "DALLE", "vae": SIZES, "dalle": THEIRS}), path)
    said = capsys.readouterr().err
    assert "13 tensors beside its encoder have no place" in said and "layers.2.0" in said


def test_a_training_starts_from_theirs(their_dalle, tmp_path):
    vae, whole = saved_by_their_scripts(their_dalle, tmp_path)
    ours = build({"proto": "VAE", **SIZES})
    start = start_from(ours, vae)
    assert not start.kept and not start.unused
    assert torch.equal(ours.vae.codebook.weight, their_dalle.vae.codebook.weight)
    dalle = build({"proto": "DALLE", "vae": SIZES, "dalle": THEIRS})
    assert not start_from(dalle, whole).kept
    assert torch.equal(dalle.dalle.text_emb.weight, their_dalle.text_emb.weight)


def of_vilmedic(folder):
    """A training checkpoint of ViLMedic's VAE, objects and all."""
    made = build({"proto": "VAE", **SIZES})
    path = folder / "0.0022899999748915434_32_951498.pth"
    beside = {"config": OmegaConf.create({"name": "vae"}), "training_scheduler": {"better": lt}}
    content = {"model": made.state_dict(), "optimizer": {}, **beside}
    torch.save(content, path)
    return made, path


def keys(ckpt, **vae):
    names = ("ckpt", "image_size", "num_layers", "num_tokens", "codebook_dim", "hidden_dim")
    more = ("num_resnet_blocks", "channels", "temperature", "straight_through")
    block = {**dict.fromkeys((*names, *more)), "ckpt": str(ckpt) if ckpt else None, **vae}
    return {"model": {"proto": "DALLE", "vae": block}, "seed": 0, "init_from": None}


def test_a_vae_of_vilmedic_tells_its_sizes(tmp_path):
    made, path = of_vilmedic(tmp_path)
    node = keys(path, image_size=32)
    found = pin_vae(node)
    assert {name: node["model"]["vae"][name] for name in SIZES} == SIZES
    dalle = build({"proto": "DALLE", "vae": node["model"]["vae"], "dalle": THEIRS})
    found.load(dalle.dalle.vae)
    assert torch.equal(dalle.dalle.vae.decoder[-1].weight, made.vae.decoder[-1].weight)


def test_what_contradicts_or_is_missing_is_one_sentence(tmp_path):
    _, path = of_vilmedic(tmp_path)
    for node, error, told in (
        (keys(path, image_size=32, hidden_dim=128), ConfigError, "hidden_dim: 128, but .* with 8;"),
        (keys(path, image_size=32, num_layers=3), ConfigError, "num_layers: 3, but .* with 2; wri"),
        (keys(path), ConfigError, "does not tell how large its images were; write their side"),
        (keys(tmp_path / "no.pth"), Unobtainable, "model.vae.ckpt: there is no .*no.pth"),
        (keys(None), UserError, "train one .* and write model.vae.ckpt=FOLDER"),
    ):
        with pytest.raises(error, match=told):
            pin_vae(node)
    plain = tmp_path / "encoder.pth"
    torch.save({"conv.weight": torch.zeros(2, 2)}, plain)
    with pytest.raises(UserError, match="model.vae.ckpt: .*encoder.pth holds no discrete VAE"):
        read_vae(plain, where="model.vae.ckpt")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no zip")
    with pytest.raises(UserError, match="model.vae.ckpt: .* is not a readable file of weights"):
        read_vae(damaged, where="model.vae.ckpt")


def test_a_whole_dalle_needs_no_second_file(tiny, capsys):
    """Our own runs, by their folders: a VAE, a DALLE on it, and one that starts from that DALLE."""
    from vilmedic_ssl.experiment import train

    vae = train(resume.config_of("VAE", tiny("VAE")))
    first = train(resume.config_of("DALLE", tiny("DALLE")))
    told = capsys.readouterr().err
    assert f"vae {vae}" in told and "num_tokens 12" in told
    config = resume.config_of("DALLE", tiny("second"))
    config["model"]["vae"] = {}
    config["init_from"] = str(first)
    second = train(config)
    weights = [
        torch.load(folder / "last_0.pth", weights_only=True)["model"] for folder in (first, second)
    ]
    name = "dalle.vae.codebook.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    original = torch.load(checkpoint.best_files(vae)[0], weights_only=True)["ema"]
    assert torch.equal(weights[0][name], original["vae.codebook.weight"])
    model, processor = AutoModel.from_pretrained(second)
    read = processor.inference(seq="Small left pleural effusion.")
    images, codes = model.generate(read["input_ids"], read["attention_mask"])
    assert images.shape == (1, 1, 32, 32) and codes.shape == (1, 64)


def test_the_command_line_says_it_in_one_sentence(tiny, capsys):
    words = [word for word in tiny("refused") if "ensemblor" not in word]
    config = "config/SELFSUP/dalle-phantom.yml"
    for more, told in (
        (["model.vae.ckpt=null"], "model.vae.ckpt: DALLE learns the codes of a trained VAE"),
        (["model.vae.ckpt=nowhere"], "model.vae.ckpt: there is no nowhere"),
        (["dataset.transform.mean=[0.5]"], "mean [0.5], but DALLE takes images from 0 to 1"),
        (["validator.metrics=[probe, code_perplexity]", "model.vae.ckpt=gone"], "there is no gone"),
    ):
        assert main(["train", config, *words, *more]) == 2
        assert told in capsys.readouterr().err
