"""A trained model is one call away, and gives what evaluation gave."""

import shutil

import numpy as np
import pytest
import torch

from vilmedic_ssl import AutoModel, ensemble, load_config, train
from vilmedic_ssl.errors import Unobtainable, UserError
from vilmedic_ssl.executors import checkpoint

CONFIG = "config/SELFSUP/simclr-phantom.yml"
PROMPTS = [
    "No pleural effusion.",
    "Left effusion",
    "a large RIGHT pneumothorax",
    "x",
    "lungs are 2",
]
SMALL = ["model.encoder.hidden_size=32", "trainor.max_steps=2", "trainor.batch_size=8"]


def test_pretrained_model_gives_the_embeddings_of_the_evaluation(tiny, phantom):
    plugin = ["ensemblor.post_processing=[{save_representation: {keys: [encoder, visual]}}]"]
    config = load_config(CONFIG, [*tiny("auto"), "ensemblor.splits=[test]", *plugin])
    folder = train(config)
    ensemble(config)
    model, processor = AutoModel.from_pretrained(folder)
    saved = folder / "post_processing" / "save_representation_best-1_0_test"
    ids = np.load(saved / "test_ids.npy")
    batch = processor.inference(image=[phantom / name for name in ids[:3]])
    out = model(**batch)
    for key in ("encoder", "visual"):
        expected = np.load(saved / f"test_{key}_embeddings.npy")[:3]
        np.testing.assert_allclose(out[key].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(processor([phantom / ids[0]])["images"][0], batch["images"][0])


@pytest.mark.parametrize("name", ["convirt", "gloria"])
def test_a_pair_model_stands_alone_in_its_file(name, tiny, phantom, tmp_path):
    """Tokenizer and settings come with the checkpoint, wherever it lies; any numbers of texts and
    images go together.
    """
    config = load_config(f"config/SELFSUP/{name}-phantom.yml", [*tiny(), *SMALL])
    folder = train(config)
    files = sorted((phantom / "images").rglob("*.png"))[:3]
    model, processor = AutoModel.from_pretrained(folder)
    batch = processor.inference(PROMPTS, files)
    copied = tmp_path / "elsewhere" / "mine.pth"
    copied.parent.mkdir()
    shutil.copy(checkpoint.find(folder, "best"), copied)
    shutil.rmtree(folder)
    for place in (copied, copied.parent):
        again, reader = AutoModel.from_pretrained(place)
        other = reader(seq=PROMPTS, image=list(map(str, files)))
        assert all(torch.equal(batch[key], other[key]) for key in batch)
        for key, tensor in model(**batch).items():
            assert torch.equal(tensor, again(**other)[key])
    texts, images = processor.inference(PROMPTS), processor.inference(image=files[0])
    assert list(images) == ["images"] and "images" not in texts
    assert model(**images)["visual"].shape[0] == 1 and model(**texts)["linguistic"].shape[0] == 5
    with torch.no_grad():
        similarity = model.similarity(**batch)
    assert similarity.shape == (3, 5)
    assert torch.equal(model.zero_shot_classification(**batch), similarity.amax(1))
    mean = model.zero_shot_classification(**batch, reduce="mean")
    torch.testing.assert_close(mean, similarity.mean(1))
    one = processor.inference(PROMPTS[1], files[2])
    with torch.no_grad():
        torch.testing.assert_close(model.similarity(**one)[0, 0], similarity[2, 1])
    for nothing, told in (({}, "give seq="), ({"seq": []}, "empty"), ({"seq": "\n "}, "is left")):
        with pytest.raises(UserError, match=told):
            processor.inference(**nothing)


def test_what_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no checkpoint to choose"):
        AutoModel.from_pretrained(tmp_path)
    for nowhere in ("nowhere.pth", "./a/b", "a/b/c", str(tmp_path / "x")):
        with pytest.raises(Unobtainable, match="there is no file or folder .*owner/name"):
            AutoModel.from_pretrained(nowhere)
    with pytest.raises(Unobtainable, match=r"the hub gave nothing under this name \(\w+\)"):
        AutoModel.from_pretrained("nobody/nothing")


def test_a_name_of_the_hub(tiny, tmp_path, monkeypatch):
    """A folder here of the same name is taken without asking; the hub gives a folder."""
    folder = train(load_config(CONFIG, [*tiny("hub"), "trainor.max_steps=1"]))
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    AutoModel.from_pretrained("someone/hub")
    AutoModel.from_pretrained("ckpt/hub")
    assert asked == ["someone/hub"]
