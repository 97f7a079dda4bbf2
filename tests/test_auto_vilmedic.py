"""Models of ViLMedic and of GLoRIA's own release give here what they gave there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import vilmedic_zoo as zoo
from omegaconf import OmegaConf
from PIL import Image

from vilmedic_ssl import AutoModel
from vilmedic_ssl.errors import ConfigError, Unobtainable, UserError
from vilmedic_ssl.executors.init_weights import start_from
from vilmedic_ssl.executors.init_weights_read import read_weights
from vilmedic_ssl.nets.dalle_package import package
from vilmedic_ssl.schema import build

TEXTS = ["no effusion", "left lung clear", "the heart is enlarged", "Unheard of", "opacity"]
NODES = {
    "ConVIRT": {
        "proto": "ConVIRT",
        "forward_batch_size": 4,
        "cnn": zoo.CNN,
        "encoder": {"proto": None, "add_pooling_layer": True, "use_cache": True, **zoo.SIZES},
        "projection": {
            "visual_embedding_dim": 512,
            "textual_embedding_dim": 16,
            "projection_dim": 8,
        },
        "loss": {"proto": "ConVIRTLoss", "tau": 0.1, "lambda_": 0.75},
    },
    "GLoRIA": {
        "proto": "GLoRIA",
        "cnn": zoo.CNN,
        "encoder": {"last_n_layers": 2, **zoo.SIZES},
        "visual_embedder": {"interm_feature_dim": 256, "feature_dim": 512},
        "loss": {"local_loss_weight": 1.0, "temp1": 4.0, "temp2": 5.0, "temp3": 10.0},
    },
    "SimCLR": {
        "proto": "SimCLR",
        "cnn": zoo.CNN,
        "projection": {"visual_embedding_dim": 512, "projection_dim": 8},
        "loss": {"tau": 0.5},
    },
}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "a.png"
    grey = np.random.default_rng(0).integers(0, 255, (50, 60), dtype=np.uint8)
    Image.fromarray(grey).save(path)
    return path


@pytest.mark.parametrize(("new", "visual"), [(True, "cnn"), (False, "model")])
def test_convirt(new, visual, film, tmp_path, capsys):
    old = zoo.stirred(lambda: zoo.ConVIRT(new=new, visual=visual))
    folder = zoo.zoo_folder(tmp_path / "zoo", old, NODES["ConVIRT"])
    model, processor = AutoModel.from_pretrained(folder)
    told = capsys.readouterr().err
    assert '"linguistic.encoder.*"' in told and f'"visual.{visual}.*"' in told
    assert "not used: linguistic.encoder.embeddings.position_ids" in told
    batch = processor.inference(TEXTS, [film, film, film])
    assert batch["images"].shape == (3, 3, 32, 32) and batch["input_ids"].shape == (5, 4)
    words = [[zoo.VOCABULARY[i] for i in row if i != 1] for row in batch["input_ids"].tolist()]
    assert words[:2] == [["no", "effusion"], ["left", "lung", "clear"]]
    assert words[3] == ["[UNK]", "[UNK]"]  # neither special tokens nor lower case, as there
    with torch.no_grad():
        out = model(**batch)
        torch.testing.assert_close(out["visual"], old.images(batch["images"]))
        expected = old.texts(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(out["linguistic"], expected)
    assert model.zero_shot_classification(**batch).shape == (3,)


def test_images_are_read_as_there(film, tmp_path):
    from torchvision import transforms

    folder = zoo.zoo_folder(tmp_path / "zoo", zoo.stirred(zoo.ConVIRT), NODES["ConVIRT"])
    _, processor = AutoModel.from_pretrained(folder)
    theirs = transforms.Compose(
        [
            transforms.Resize((32, 32)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = theirs(Image.open(film).convert("RGB"))
    found = processor(image=str(film))["images"][0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / 0.224)


@pytest.mark.parametrize("official", [False, True])
def test_gloria(official, film, tmp_path):
    """Its own release, too, whose .ckpt has a config beside it here."""
    old = zoo.stirred(zoo.GLoRIA)
    folder = zoo.zoo_folder(tmp_path / "zoo", old, NODES["GLoRIA"])
    if official:
        (folder / "1.6_3_42.pth").unlink()
        hyper = OmegaConf.create({"model": {"text": {"bert_type": "x"}}})
        content = {"state_dict": old.official(), "hyper_parameters": hyper, "epoch": 3}
        torch.save(content, folder / "chexpert_resnet50.ckpt")
    model, processor = AutoModel.from_pretrained(folder)
    batch = processor.inference(seq=TEXTS[:2], image=str(film))
    assert batch["input_ids"].tolist() == [[0, 12, 6, 2, 1], [0, 10, 11, 5, 2]]
    big = torch.nn.Upsample(size=(299, 299), mode="bilinear", align_corners=True)(batch["images"])
    with torch.no_grad():
        out = model(**batch)
        torch.testing.assert_close(out["visual"], old.global_embedder(old.visual(big)))
        hidden = old.linguistic.encoder(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        ).hidden_states
        said = hidden[-1][0, :4].sum(0) + hidden[-2][0, :4].sum(0)
    cosine = torch.cosine_similarity(said, out["linguistic"][0], dim=0)
    torch.testing.assert_close(cosine, torch.tensor(1.0))
    assert torch.equal(model.local_embedder.weight, old.local_embedder.weight)
    assert model.zero_shot_classification(**batch).shape == (1,)


def test_simclr(film, tmp_path):
    old = zoo.stirred(zoo.ConVIRT)
    del old.linguistic, old.lin_proj
    image = zoo.DATASET["image"] | {
        "proto": "ImageDataset",
        "custom_transform_val": "transforms.Compose([transforms.Resize((48, 48)), "
        "transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])",
    }
    folder = zoo.zoo_folder(tmp_path / "zoo", old, NODES["SimCLR"], **image)
    model, processor = AutoModel.from_pretrained(folder)
    batch = processor.inference([film, film])
    assert batch["images"].shape == (2, 3, 48, 48) and batch["images"].min() >= -1
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)["visual"], old.images(batch["images"]))


def test_a_training_starts_from_such_a_file(tmp_path):
    """What is beside the weights is dropped, unread; a pooling layer beside the encoder counts."""
    old = zoo.stirred(zoo.ConVIRT)
    path = zoo.checkpoint(old, tmp_path / "a.pth")
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder |= {"intermediate_size": 32, "max_position_embeddings": 40, "vocab_size": 16}
    node = NODES["ConVIRT"] | {"encoder": encoder, "loss": {"proto": "InfoNCELoss"}}
    model = build(node, where="model")
    start = start_from(model, path)
    assert start.kept == ["learned.log_scale"]
    assert start.taken["text_projection.2.bias"] == "lin_proj.2.bias"
    assert start.taken["encoder.net.pooler.dense.weight"] == "linguistic.pooler.dense.weight"
    assert not model.encoder.net.embeddings.token_type_embeddings.weight.any()
    start.write(tmp_path / "init_0.json")
    told = json.loads((tmp_path / "init_0.json").read_text())
    assert told["not_used"] == ["linguistic.encoder.embeddings.position_ids"]
    assert read_weights(path).tensors.keys() == {
        *old.state_dict(),
        "linguistic.encoder.embeddings.position_ids",
    }


def test_another_text_encoder_is_told(tmp_path, capsys):
    old = zoo.stirred(zoo.ConVIRT)
    path = zoo.checkpoint(old, tmp_path / "a.pth")
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder |= {"intermediate_size": 32, "max_position_embeddings": 64, "vocab_size": 300}
    model = build(NODES["ConVIRT"] | {"encoder": encoder}, where="model")
    start_from(model, path)
    assert "2 of the 39 tensors of the text encoder are not in" in capsys.readouterr().err


class Inside(torch.nn.Module):
    """ViLMedic keeps the networks of dalle-pytorch in attributes, DALLE's VAE twice."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


SIZES = {
    **{"image_size": 32, "num_layers": 2, "num_tokens": 12, "codebook_dim": 8},
    **{"hidden_dim": 8, "num_resnet_blocks": 1},
}
TO_TENSOR = "transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), {}])".format(
    "transforms.ToTensor()"
)
PLAIN = {"custom_transform_train": TO_TENSOR, "custom_transform_val": TO_TENSOR, "crop": 32}


def test_vae(tmp_path, phantom):
    old = zoo.stirred(lambda: Inside(vae=package().DiscreteVAE(**SIZES)))
    node = {"proto": "VAE", "temperature": 0.9, "straight_through": False, **SIZES}
    model, processor = AutoModel.from_pretrained(zoo.zoo_folder(tmp_path / "a", old, node, **PLAIN))
    images = processor.inference(image=next(phantom.rglob("*.png")))["images"]
    assert torch.equal(model.codes(images), old.vae.get_codebook_indices(images))


def test_dalle_pads_with_a_word_as_it_learned_to(tmp_path):
    sizes = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 12}
    words = {"num_text_tokens": len(zoo.VOCABULARY), "text_seq_len": 6}

    def make():
        vae = package().DiscreteVAE(**SIZES)
        return Inside(vae=Inside(vae=vae), dalle=package().DALLE(vae=vae, **sizes, **words))

    old = zoo.stirred(make)
    old.dalle.transformer.pos_emb = make().dalle.transformer.pos_emb  # no weight, but angles
    node = {"proto": "DALLE", "vae": {**SIZES, "ckpt": "gone.pth"}, "dalle": {**sizes, **words}}
    data = {"image": PLAIN, "seq": {"tokenizer_max_len": 6}}
    folder = zoo.zoo_folder(tmp_path / "a", old, node, **data)
    model, processor = AutoModel.from_pretrained(folder)
    read = processor.inference(seq=" ".join(zoo.VOCABULARY[5:8]))
    ids = model.ids(read["input_ids"], read["attention_mask"])
    assert ids.tolist() == [[5, 6, 7, 1, 1, 1]]
    images = torch.rand(1, 3, 32, 32)
    batch = {"images": images[:, None], "seeds": torch.zeros(1).long(), **read}
    expected = old.dalle(ids.clone(), images, return_loss=True)
    assert torch.allclose(model(**batch)["loss"], expected, atol=1e-6)


def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = zoo.stirred(zoo.ConVIRT)
    folder = zoo.zoo_folder(tmp_path / "vilmedic/zoo/models/selfsup/mine", old, NODES["ConVIRT"])
    AutoModel.from_pretrained("selfsup/mine")  # as ViLMedic has kept it
    with pytest.raises(UserError, match="cloud drive"):
        AutoModel.from_pretrained("selfsup/convirt-mimic")
    (folder / "vocab.src").rename(folder / "v")
    with pytest.raises(ConfigError, match=r"neither a tokenizer nor the vocabulary vocab\.src"):
        AutoModel.from_pretrained(folder)
    (folder / "v").rename(folder / "vocab.src")

    def refused(kind, told, **changes):
        config = {"model": NODES["ConVIRT"], "dataset": zoo.DATASET} | changes
        OmegaConf.save(config, folder / "config.yml")
        with pytest.raises(kind, match=told):
            AutoModel.from_pretrained(folder)

    refused(UserError, "the model is 'RRG'", model={"proto": "RRG"})
    refused(UserError, "with `model` and `dataset`", model=None)
    refused(
        ConfigError,
        r"config\.yml: model\.projection",
        model=NODES["ConVIRT"] | {"projection": {"projection_dimension": 8}},
    )
    refused(
        UserError,
        r"lacks 8 tensors .*projection\.0\.weight",
        model=NODES["ConVIRT"] | {"projection": {"projection_dim": 9}},
    )
    hub = NODES["ConVIRT"] | {"encoder": {"proto": "nobody/none"}}
    refused(Unobtainable, "nobody/none", model=hub)
    chexpert = zoo.DATASET | {"image": {"ext": ".gloria_chx"}}
    refused(ConfigError, "padded square", dataset=chexpert)
    torch.save({}, folder / "second.pth")
    refused(UserError, "here are 2 .pth")


class Code:
    """What a file must not be able to run."""

    def __reduce__(self):
        return print, ("run",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    """Harmless-looking names of dropped packages neither: an empty object stands for each."""
    weights = {"model": {"a.weight": torch.ones(2)}, "config": Code()}
    torch.save(weights, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth").tensors) == ["a.weight"]
    assert capsys.readouterr().out == ""
