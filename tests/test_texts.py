"""What a paired model reads: tokens, words, sentences, sides; and what equal reports cost."""

import math

import numpy as np
import pytest
import resume
import torch
from PIL import Image

from vilmedic_ssl.data.texts import Texts, TextSettings, group_names
from vilmedic_ssl.data.tokenizers import as_data, load_tokenizer, restore, train_tokenizer
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.experiment import ensemble, train
from vilmedic_ssl.experiment.texts import settle_flips
from vilmedic_ssl.models.convirt import ConVIRT
from vilmedic_ssl.nets.criteria import ConVIRTLoss, InfoNCELoss, SigmoidLoss
from vilmedic_ssl.nets.text import TextEncoder, pooled
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.schema import build

REPORTS = [
    "Small left pleural effusion. No pneumothorax.",
    "Cardiomegaly of 1.5 cm. No effusion.",
    "Left effusions.",
]


@pytest.fixture(scope="module")
def texts():
    return Texts(TextSettings(), train_tokenizer(REPORTS * 9, 200))


def byte_level(folder):
    """A byte-level BPE tokenizer with RoBERTa's specials, saved as a folder."""
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = ByteLevelBPETokenizer()
    core.train_from_iterator(REPORTS, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    core._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, pad_token="<pad>", unk_token="<unk>", **special
    )
    made.save_pretrained(str(folder))
    return load_tokenizer(str(folder))


def test_tokens_stand_between_specials_and_pieces_share_a_word(texts):
    batch = texts.batch(["left effusionleft", "left"])
    names = texts.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert names[0] == "[CLS]" and names[-1] == "[SEP]" and names[3].startswith("##")
    assert batch["words"][0].tolist() == [0, 1, *[2] * (len(names) - 3), 3]
    assert batch["words"][1].tolist() == [0, 1, 2, *[-1] * (len(names) - 3)]
    assert (batch["attention_mask"] == (batch["words"] >= 0)).all()
    assert texts.word_strings("left effusionleft.") == [
        *("[CLS]", "left", "effusionleft", ".", "[SEP]"),
    ]


def test_word_pieces_and_bytes_number_the_same_words(texts, tmp_path):
    bytes_ = Texts(TextSettings(), byte_level(tmp_path / "bpe"))
    for report in ["small left effusion", "effusions left small left"]:
        assert texts.word_strings(report)[1:-1] == bytes_.word_strings(report)[1:-1]
        counts = [t.batch([report])["words"].max() for t in (texts, bytes_)]
        assert counts[0] == counts[1] == len(report.split()) + 1


def test_a_tokenizer_is_the_same_each_time_and_survives_as_data(texts, tmp_path):
    data = as_data(train_tokenizer(REPORTS * 9, 200))
    assert data == as_data(texts.tokenizer) == as_data(restore(data))
    bpe = byte_level(tmp_path)
    again = Texts(TextSettings(), restore(as_data(bpe)))
    assert torch.equal(
        again.batch(REPORTS)["input_ids"], Texts(TextSettings(), bpe).batch(REPORTS)["input_ids"]
    )
    with pytest.raises(UserError, match="no folder with tokenizer files"):
        load_tokenizer(str(tmp_path / "nothing"))


def test_long_texts_end_in_the_special_token(texts):
    short = Texts(TextSettings(tokenizer_max_len=5), texts.tokenizer)
    ids = short.batch(REPORTS)["input_ids"]
    assert ids.shape == (3, 5) and (ids[:2, -1] == texts.tokenizer.sep_token_id).all()


def test_a_sentence_and_a_mirror_are_drawn_by_the_seed(texts):
    drawing = Texts(TextSettings(sentence="random", mirror=0.5), texts.tokenizer)
    drawn = [drawing.draw(REPORTS[0], seed) for seed in range(40)]
    assert drawn == [drawing.draw(REPORTS[0], seed) for seed in range(40)]
    assert {text for text, mirrored in drawn if not mirrored} == {"Small left pleural effusion."}
    assert {text for text, mirrored in drawn if mirrored} == {"Small right pleural effusion."}
    assert 8 < sum(mirrored for _, mirrored in drawn) < 32
    assert drawing.choices("No pneumothorax.") == [
        "No pneumothorax."
    ]  # too short, but all there is


def test_sections_and_processing(texts):
    report = "FINDINGS: Nodule of 1.5 cm. IMPRESSION: Nodule."
    assert Texts(TextSettings(sections=["impression"])).prepare(report) == "Nodule."
    assert "1.5 cm" in Texts(TextSettings()).prepare(report)
    assert "15 cm" in Texts(TextSettings(processing="r2gen")).prepare(report)
    with pytest.raises(ConfigError, match="did you mean 'r2gen'"):
        TextSettings(processing="r2gem")
    with pytest.raises(ConfigError, match="no section 'findngs'; did you mean 'findings'"):
        TextSettings(sections=["findngs"])
    with pytest.raises(ConfigError, match="drop_priors needs processing clean"):
        TextSettings(processing="none", drop_priors=True)


def test_pooling_leaves_padding_out():
    tokens = torch.tensor([[[1.0], [3.0], [9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pooled(tokens, mask, "mean").item() == 2 and pooled(tokens, mask, "max").item() == 3
    assert pooled(tokens, mask, "first").item() == 1


def test_a_text_encoder_from_a_folder_is_the_same_network(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40}
    made = TextEncoder(**sizes)
    made.net.save_pretrained(str(tmp_path))
    again = TextEncoder(proto=str(tmp_path), freeze_layers=2).pool_by("mean").train()
    ids, mask = torch.randint(0, 40, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    assert torch.allclose(made.eval()(ids, mask), again.eval()(ids, mask))
    learn = {n.split(".")[2] for n, p in again.net.named_parameters() if p.requires_grad}
    assert learn == {"2"}
    assert not again.train().net.encoder.layer[0].training and again.net.encoder.layer[2].training
    with pytest.raises(ConfigError, match="write 0 to 3"):
        TextEncoder(**sizes, freeze_layers=4)
    with pytest.raises(ConfigError, match="no multiple of num_attention_heads"):
        TextEncoder(hidden_size=10, num_attention_heads=4)
    with pytest.raises(UserError, match="no transformers folder"):
        TextEncoder(proto=str(tmp_path / "nothing"))


def flipping(value, key="train"):
    return {"dataset": {"text": {}, "transform": {"crop": 8, "local_crop": 8, key: value}}}


def test_flips_of_paired_images_go_or_are_refused():
    usual = flipping(None)
    settle_flips(usual)
    assert usual["dataset"]["transform"]["train"] == [
        {"RandomCrop": {"size": [8, 8], "pad_if_needed": True}}
    ]
    preset = flipping("simclr")
    settle_flips(preset)
    assert preset["dataset"]["transform"]["train"]
    assert "HorizontalFlip" not in str(preset)
    for items in (
        ["RandomHorizontalFlip"],
        [{"RandomApply": {"transforms": ["RandomHorizontalFlip"]}}],
    ):
        with pytest.raises(ConfigError, match=r"dataset\.text\.mirror=0\.5"):
            settle_flips(flipping(items))


@pytest.mark.parametrize("loss", [ConVIRTLoss, InfoNCELoss, SigmoidLoss])
def test_equal_reports_set_a_floor(loss):
    texts_, study = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 3])
    groups = torch.stack([texts_, study, study], dim=1)
    found = {
        policy: loss(duplicates=policy).references(groups, groups)
        for policy in ("ignore", "mask", "positives")
    }
    assert found["ignore"]["floor"][2:].abs().max() < 1e-6
    assert (found["ignore"]["chance"] > found["mask"]["chance"])[:2].all()
    assert found["mask"]["floor"].abs().max() < 1e-6
    if loss is SigmoidLoss:  # two questions with equal sides, one of them true: even odds twice
        assert math.isclose(float(found["ignore"]["floor"][0]), 2 * math.log(2), rel_tol=1e-6)
        assert found["positives"]["floor"].abs().max() == 0
    else:
        assert math.isclose(float(found["ignore"]["floor"][0]), math.log(2), rel_tol=1e-6)
        assert math.isclose(float(found["positives"]["floor"][0]), math.log(2), rel_tol=1e-6)


def test_pairs_are_alike_by_text_study_and_patient_and_by_nothing_unknown():
    first = group_names("a", "study1", "p1", "1.png")
    assert first[1:] != group_names("a", "study1", "p2", "2.png")[1:]  # visits are counted anew
    assert first[0] == group_names("a", "study1", "p2", "2.png")[0]
    assert first[1:] == group_names("b", "study1", "p1", "3.png")[1:]
    assert not set(group_names("a", None, None, "1")[1:]) & set(group_names("b", "1", "1", "2")[1:])
    with pytest.raises(ConfigError, match=r"model\.loss\.alike: \[\]"):
        InfoNCELoss(alike=[])


def test_another_models_checkpoint_is_one_sentence(tiny):
    train(resume.config_of("SimCLR", tiny("mixed")))
    with pytest.raises(UserError, match="of SimCLR, which reads no reports"):
        ensemble(resume.config_of("ConVIRT", tiny("mixed")))


def test_the_floor_is_reached_and_not_passed():
    """Vectors that tell all texts apart and nothing else have the floor as their loss."""
    texts_ = torch.tensor([0, 0, 1, 2])
    groups = torch.stack([texts_, torch.arange(4), torch.arange(4)], dim=1)
    rows = torch.eye(3, dtype=torch.float64)[texts_]
    for policy in ("ignore", "positives", "mask"):
        loss = ConVIRTLoss(tau=0.01, duplicates=policy)
        floor = loss.reference(groups)["floor"]
        assert math.isclose(float(loss(rows, rows, groups)), floor, abs_tol=1e-6)


def test_a_checkpoint_carries_its_tokenizer_and_blank_reports_are_left_out(phantom, tiny, tmp_path):
    import csv

    rows = list(csv.DictReader((phantom / "manifest.csv").open(encoding="utf-8")))
    blank = [r for r in rows if r["split"] == "train"][:3]
    for row in blank:
        row["report"] = ""
    table = tmp_path / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    node = resume.config_of("ConVIRT", tiny("blank"))
    node["dataset"] |= {"manifest": str(table), "root": str(phantom)}
    node["trainor"]["max_steps"] = 1
    content = checkpoint.read_run(train(node) / "last_0.pth")
    assert len(content["trained_on"]) == sum(r["split"] == "train" for r in rows) - 3
    assert restore(content["tokenizer"])("effusion").input_ids
    assert content["config"]["model"]["encoder"]["config"]["model_type"] == "bert"
    assert content["config"]["model"]["loss"]["proto"] == "ConVIRTLoss"


def test_wrong_texts_are_one_sentence(tiny, tmp_path):
    node = resume.config_of("ConVIRT", tiny("words"))
    node["model"]["encoder"] = {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    with pytest.raises(ConfigError, match="leave the key out"):
        train(node)
    node = resume.config_of("ConVIRT", tiny("long"))
    node["dataset"]["text"] = {"tokenizer_max_len": 4000}
    with pytest.raises(ConfigError, match="write 96 or less"):
        train(node)
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.full((32, 32), i, dtype=np.uint8)).save(tmp_path / f"train/a/{i}.png")
    node["dataset"] = {"proto": "ImageFolder", "root": str(tmp_path)}
    with pytest.raises(UserError, match="this data has none; they come from a column 'report'"):
        train({**node, "audit": None})


def test_similarity_heat_and_zero_shot_take_any_numbers(texts):
    cnn = {"proto": "CNN", "backbone": "test_resnet", "in_chans": 1}
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 200}
    for name in ("ConVIRT", "GLoRIA"):
        more = {"image_size": 64} if name == "GLoRIA" else {}
        model = build({"proto": name, "cnn": cnn, "encoder": text, **more}).eval()
        images, batch = torch.randn(3, 1, 32, 32), texts.batch(REPORTS[:2])
        assert model.similarity(images, **batch).shape == (3, 2)
        assert model.zero_shot_classification(images, **batch).shape == (3,)
        found = model(images=images, **batch)
        assert found["visual"].shape[0] == 3 and found["linguistic"].shape[0] == 2
        heat = model.heat(images[:2], **batch)
        assert heat.shape[0] == 2 and heat.abs().max() <= 1 + 1e-6
        words = model.word_heat(images[:2], **batch)
        assert words.shape[0] == 2 and words.shape[2:] == heat.shape[1:]
        with pytest.raises(UserError, match="gives no 'input_ids'"):
            model(images=images[:, None])


def test_models_take_each_others_losses():
    cnn = VisualEncoder(backbone="test_resnet", in_chans=1)
    text = TextEncoder(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    model = ConVIRT(encoder=text, cnn=cnn, loss=InfoNCELoss(learnable=True))
    assert set(model.learned) == {"log_scale"}
