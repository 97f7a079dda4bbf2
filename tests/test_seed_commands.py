"""ConVIRT, GLoRIA, VAE and DALLE as ViLMedic's page writes them: its blocks, folders, commands."""

import shlex
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_bert import save_bert

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.data import texts

CNN = """
  cnn:
    proto: CNN
    backbone: resnet50
    output_layer: avgpool
    dropout_out: 0.0
    permute: batch_first
    freeze: False
"""
CONVIRT = f"""
  proto: ConVIRT
  encoder:
    proto: data/SELFSUP/huggingface/biomed_roberta_base{CNN}
  projection:
    visual_embedding_dim: 2048
    textual_embedding_dim: 768
    projection_dim: 768
  loss:
    proto: ConVIRTLoss
    tau: 0.1
    lambda_: 0.75
"""
GLORIA = f"""
  proto: GLoRIA

  encoder:
    proto: data/SELFSUP/huggingface/Bio_ClinicalBERT
    last_n_layers: 4{CNN}
  visual_embedder:
    interm_feature_dim: 1024
    feature_dim: 2048

  loss:
    local_loss_weight: 1.0
    global_loss_weight: 1.0
    temp1: 4.0
    temp2: 5.0
    temp3: 10.0
"""
BLOCKS = {"convirt-mimic": CONVIRT, "gloria-mimic": GLORIA}
POST_PROCESSING = """
  - plot_representation:
      keys:
        - linguistic
        - visual
      labels_keep: [Pleural Effusion,Pneumonia,Pneumothorax,Cardiomegaly,Atelectasis]
      max_samples_per_class: 250
"""
QUICK = ["num_workers=0", "device=cpu", "dataset.image.resize=32", "dataset.image.crop=32"]
STEPS = ["trainor.batch_size=8", "trainor.max_steps=2"]
SMALL = [  # instead of ResNet-50 and a text encoder of 768
    "model.encoder.proto=bert",
    "model.cnn.backbone=test_resnet",
    "model.projection={visual_embedding_dim: null, textual_embedding_dim: null}",
]
LABELS = [
    "dataset.proto=ImSeqLabel",
    "dataset.label.root=data/SELFSUP/mimic-cxr/",
    "dataset.label.file=label.tok",
]


@pytest.fixture
def layout(phantom, tmp_path, monkeypatch, quick_scores):
    """The folders that ViLMedic's commands expect, in the working directory."""
    shutil.copytree(phantom / "images", tmp_path / "data/images/images")
    (tmp_path / "data/SELFSUP/mimic-cxr").mkdir(parents=True)
    for file in phantom.glob("*.tok"):
        shutil.copy(file, tmp_path / "data/SELFSUP/mimic-cxr")
    for name in ("biomed_roberta_base", "Bio_ClinicalBERT"):
        place = tmp_path / "data/SELFSUP/huggingface" / name
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(save_bert(phantom.with_name("bert768"), 768))
    (tmp_path / "bert").symlink_to(save_bert(phantom.with_name("bert")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(texts, "_told", set())
    return tmp_path


@pytest.mark.parametrize("name", BLOCKS)
def test_the_model_block_is_vilmedics(name):
    node = yaml_config.load(f"config/SELFSUP/{name}.yml")
    assert node["model"] == OmegaConf.to_container(OmegaConf.create(BLOCKS[name]))
    drawn = [item for item in node["ensemblor"]["post_processing"] if "plot_representation" in item]
    assert drawn == OmegaConf.to_container(OmegaConf.create(POST_PROCESSING))


def test_convirt_trains_and_its_space_is_drawn(layout, capsys):
    config = "config/SELFSUP/convirt-mimic.yml"
    assert main(["train", config, *QUICK, *STEPS, *SMALL]) == 0, capsys.readouterr().err
    folder = layout / "ckpt/convirt-mimic"
    assert main(["ensemble", config, *LABELS, *QUICK, *SMALL]) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    assert "failed" not in told and "ensembling 1 checkpoint(s)" in told
    for split in ("train", "validate", "test"):
        (place,) = folder.glob(f"*/*/post_processing/plot_representation_best-1_0_{split}")
        names = np.load(place / f"{split}_linguistic_labels.npy")
        for key in ("linguistic", "visual"):
            rows = np.load(place / f"{split}_{key}_embeddings.npy")
            assert rows.shape == (len(names), 768)
            assert (place / f"{split}_{key}_full_PCA.png").is_file()
    assert len(list(folder.glob("evaluations/*/report.html"))) == 1  # labels were not in training


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_the_whole_block_trains(name, layout, capsys):
    config, few = f"config/SELFSUP/{name}.yml", ["trainor.batch_size=4", "trainor.max_steps=2"]
    assert main(["train", config, *QUICK, *few]) == 0, capsys.readouterr().err
    words = [*LABELS, *QUICK, "ensemblor.splits=[test]"]
    assert main(["ensemble", config, *words]) == 0, capsys.readouterr().err
    plotted = "post_processing/plot_representation_best-1_0_test"
    (place,) = (layout / f"ckpt/{name}").glob(f"evaluations/*/{plotted}")
    assert len(list(place.glob("*_embeddings.npy"))) == 2
    told = capsys.readouterr().err
    assert "failed" not in told and "dataset.seq.mirror=0.5" in told


def test_vae_and_dalle_by_the_pages_commands(layout, capsys):
    """Its three command lines, with smaller numbers, in its folders."""
    home = layout / "data/CLIP/mimic-cxr"
    home.mkdir(parents=True)
    for split in ("train", "validate", "test"):
        shutil.copy(layout / f"data/SELFSUP/mimic-cxr/{split}.image.tok", home)
        report = layout / f"data/SELFSUP/mimic-cxr/{split}.report.tok"
        shutil.copy(report, home / f"{split}.impression.tok")
    quick = ["num_workers=0", "device=cpu", "trainor.max_steps=2"]
    vae = shlex.split("""model.image_size=32 model.num_layers=2 model.num_tokens=64
        model.codebook_dim=16 model.hidden_dim=8 trainor.batch_size=4 trainor.grad_accu=4
        name=vae""")
    size = ["dataset.resize=32", "dataset.crop=32"]
    assert main(["train", "config/CLIP/vae.yml", *vae, *size, *quick]) == 0, capsys.readouterr().err
    (file,) = (layout / "ckpt/vae").glob("0.*_1_0.pth")
    assert len(list((layout / "ckpt/vae/reconstructions").glob("epoch_0001_*.png"))) == 1
    shape = shlex.split("""model.vae.image_size=32 model.dalle.dim=32 model.dalle.heads=2
        model.dalle.dim_head=16 model.dalle.depth=2""")
    rest = shlex.split("""trainor.batch_size=3 trainor.clip_grad_norm=0.5 trainor.grad_accu=5
        trainor.lr_decay_params.patience=1 name=dalle""")
    size = ["dataset.image.resize=32", "dataset.image.crop=32"]
    words = [*shape, *rest, f"model.vae.ckpt={file}", *size, *quick]
    assert main(["train", "config/CLIP/dalle.yml", *words]) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    assert "hidden_dim 8" in told and "text_loss" in told and "image_loss" in told
    (best,) = (layout / "ckpt/dalle").glob("[0-9]*_1_0.pth")
    file.unlink()  # its weights are in the other's checkpoint
    words = [*shape, "name=dalle", "ckpt_dir=ckpt", f"ckpt={best.name}", *size, *quick[:2]]
    words += [f"model.vae.ckpt={file}", "ensemblor.generate_images=True"]
    assert main(["ensemble", "config/CLIP/dalle.yml", *words]) == 0, capsys.readouterr().err
    assert "did not finish" not in capsys.readouterr().err
    (drawn,) = (layout / "ckpt/dalle").glob("evaluations/*/post_processing/generate_images_*_001")
    assert len(list(drawn.glob("*/report.txt"))) == 4 and len(list(drawn.glob("*/[0-4].png"))) == 20


def old_file(layout, transform, **seq):
    """A file as it was written for ViLMedic."""
    node = yaml_config.load("config/SELFSUP/convirt-mimic.yml")
    node["dataset"]["image"]["custom_transform_train"] = transform
    node["dataset"]["seq"].update(seq)
    (layout / "old.yml").write_text(yaml_config.dump(node))
    return "old.yml"


MIRRORS = """transforms.Compose([transforms.Resize(32), transforms.RandomCrop(32),
    transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])"""


def test_a_file_written_for_vilmedic(layout, capsys):
    words = ["num_workers=0", "device=cpu", "dataset.image.crop=32", *STEPS, *SMALL]
    assert main(["train", old_file(layout, MIRRORS), *words]) == 2
    told = capsys.readouterr().err
    assert "custom_transform_train mirrors images" in told and "dataset.seq.mirror=0.5" in told
    assert main(["train", old_file(layout, None, source="src"), *words]) == 2
    assert "dataset.seq.source: " in capsys.readouterr().err
    still = MIRRORS.replace("transforms.RandomHorizontalFlip(), ", "")
    file = old_file(layout, still, processing="ifcc_clean_report")
    assert main(["train", file, *words]) == 0
    told = capsys.readouterr().err
    assert "warning: processing ifcc_clean_report: " in told
    mirrored = [*words, "dataset.seq.mirror=0.5", "name=mirrored"]
    assert main(["train", old_file(layout, still), *mirrored]) == 0
