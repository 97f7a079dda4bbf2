"""A student learns from a trained classifier."""

import shutil

import pytest
import resume
import torch
import yaml
from methods import node_of

from vilmedic_ssl import AutoModel, build
from vilmedic_ssl.errors import ConfigError, Leak, UserError
from vilmedic_ssl.executors import checkpoint, gradient_cache
from vilmedic_ssl.executors.run import read_log
from vilmedic_ssl.experiment import ensemble, train
from vilmedic_ssl.experiment.data import pin_classes
from vilmedic_ssl.nets.ema import WeightAverage


def made(encoder="batch norm", **keys):
    torch.manual_seed(0)
    return build(node_of("Distillation", encoder, **keys))


def batch(labels=None):
    images = torch.rand(6, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"images": images, **({} if labels is None else {"labels": labels})}


def test_the_teacher_is_still_and_the_student_learns():
    model = made(loss={"alpha": 1.0}).train()
    assert not any(module.training for module in model.teacher.modules())
    assert model.cnn.training and not any(p.requires_grad for p in model.teacher.parameters())
    before = {n: t.clone() for n, t in model.teacher.state_dict().items()}
    out = model(**batch())
    out["loss"].backward()
    assert all(torch.equal(t, before[n]) for n, t in model.teacher.state_dict().items())
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_student_and_teacher_see_the_same_image():
    model = made(cnn=node_of("Classifier", "no norm")["cnn"], loss={"alpha": 1.0})
    model.eval()
    features, student, taught = model.rows(batch()["images"])
    assert torch.equal(taught, model.teacher.logits(batch()["images"][:, 0]))
    assert torch.equal(student, model.encode(batch()["images"][:, 0])["visual"])
    assert features.shape[0] == 6


def test_a_student_like_its_teacher_is_at_the_least_loss():
    """The gradient of the soft cross entropy is 0 where student and teacher agree."""
    model = made("no norm", loss={"alpha": 1.0, "temperature": 3.0}).eval()
    own = {n: t for n, t in model.state_dict().items() if not n.startswith("teacher.")}
    model.teacher.load_state_dict(own)
    model(**batch())["loss"].backward()
    assert all(p.grad.abs().max() < 1e-6 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("known", [6, 3, 0])
def test_the_mean_is_over_labelled_images_in_chunks_too(known):
    import contextlib

    labels = torch.where(torch.arange(6) < known, torch.arange(6) % 3, -1)
    found = []
    for chunk in (None, 2):
        model = made("no norm", loss={"alpha": 0.4}).double().train()
        data = {k: v.double() if v.is_floating_point() else v for k, v in batch(labels).items()}
        keys = {"cast": contextlib.nullcontext, "scale": lambda x: x}
        out = gradient_cache.backward(model, data, chunk=chunk, **keys)
        found.append([out["loss"], *(p.grad for p in model.parameters() if p.requires_grad)])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole)
    with torch.no_grad():
        _, student, taught, _ = model.rows(data["images"], labels=labels)
    soft = -(taught.softmax(1) * student.log_softmax(1)).sum(1).mean()
    hard = torch.nn.functional.cross_entropy(student[:known], labels[:known]) if known else 0
    assert float(found[0][0]) == pytest.approx(float(0.4 * soft + 0.6 * hard))


def test_the_average_of_a_student_keeps_its_teacher():
    model = made()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.head.weight.add_(1)
    average.update(model)
    for mine, theirs in zip(
        average.model.teacher.parameters(), model.teacher.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert not torch.equal(average.model.head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"teacher": None}, r"model\.teacher: None; training from a config reads"),
        ({"teacher": "ckpt/x"}, r"model\.teacher: 'ckpt/x'"),
        ({"classes": 4}, "it knows 3 classes, the student 4"),
        ({"task": "findings"}, "it tells classes, the student findings"),
        ({"loss": {"temperature": 0.0}}, "write a number above 0"),
        ({"loss": {"alpha": 1.5}}, "write a share from 0 to 1"),
        ({"teacher": {"proto": "SimCLR", "cnn": {"backbone": "x"}}}, "'SimCLR' is no Classifier"),
    ],
)
def test_mistakes_are_one_sentence(keys, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build({**node_of("Distillation", "no norm"), **keys})


def test_ordered_classes_are_taught_as_classes():
    teacher = {**node_of("Classifier", "no norm"), "task": "ordinal"}
    model = build({**node_of("Distillation", "no norm"), "teacher": teacher, "loss": {"alpha": 1}})
    _, _, taught = model.eval().rows(batch()["images"])
    scores = model.teacher.encode(batch()["images"][:, 0])["scores"]
    assert torch.allclose(taught.softmax(1), scores, atol=1e-6)


class Unlabelled:
    labels, label_names = None, []


def test_a_teacher_stands_in_for_labels_where_none_are_looked_at():
    node = {"proto": "Distillation", "classes": None, "task": None, "loss": {"alpha": 1.0}}
    node["teacher"] = {"classes": 5, "task": "findings"}
    pin_classes(node, Unlabelled())
    assert (node["classes"], node["task"]) == (5, "findings")
    node["teacher"]["task"] = "ordinal"  # its class probabilities are what is taught
    pin_classes(node, Unlabelled())
    assert node["task"] == "classes"
    with pytest.raises(UserError, match="learns from labels, and this data has none"):
        pin_classes({**node, "loss": {"alpha": 0.9}}, Unlabelled())


@pytest.fixture
def teacher(tiny):
    return train(resume.config_of("Classifier", tiny("Classifier")))


def test_from_a_run_folder_to_scores(tiny, teacher, capsys):
    """Trained by what is found in a run folder; the files of the teacher are not needed after."""
    config = resume.config_of("Distillation", tiny("student"))
    config["validator"]["metrics"] = ["accuracy"]
    folder = train(config)
    best = checkpoint.ranked(teacher)[0]
    told = capsys.readouterr().err
    assert f"teacher {best}, frozen" in told and "frozen: teacher " in told
    content, source = checkpoint.read(folder / "last_0.pth"), checkpoint.read(best)
    for name, tensor in (source["ema"] or source["model"]).items():
        assert torch.equal(content["model"][f"teacher.{name}"], tensor), name
        assert torch.equal(content["ema"][f"teacher.{name}"], tensor), name
    saved = yaml.safe_load((folder / "config_0.yml").read_text())["model"]
    assert saved["teacher"]["proto"] == "Classifier" and saved["teacher"]["classes"] == 6
    scores = [r for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"][-1]["scores"]
    assert 0 <= scores["accuracy"] <= 1
    shutil.rmtree(teacher)
    config["ensemblor"]["post_processing"] = [{"knn": {"draws": 10}}]
    assert "test/knn/accuracy" in ensemble(config)
    model, _ = AutoModel.from_pretrained(folder)
    assert model.encode(torch.rand(2, 1, 32, 32))["scores"].shape == (2, 6)
    with pytest.raises(UserError, match="a new training reads the teacher's weights from a file"):
        train({**config, "name": "again", "model": saved})


def test_a_distilled_student_teaches_the_next(tiny, teacher):
    student = train(resume.config_of("Distillation", tiny("student")))
    config = resume.config_of("Distillation", tiny("next"))
    config["model"]["teacher"] = str(student / "last_0.pth")
    content = checkpoint.read(train(config) / "last_0.pth")
    assert not any(name.startswith("teacher.teacher.") for name in content["model"])


def test_who_cannot_teach_is_one_sentence(tiny, teacher):
    config = resume.config_of("Distillation", tiny("student"))
    folder = train(resume.config_of("SimCLR", tiny("simclr")))
    for source, sentence in (
        (str(folder), "holds a SimCLR, which gives no class scores"),
        (str(folder / "nothing.pth"), "there is no checkpoint"),
        (str(folder.parent), "holds no checkpoint"),
        (None, r"write model\.teacher=FOLDER"),
    ):
        config["model"]["teacher"] = source
        with pytest.raises(UserError, match=sentence):
            train(config)
    config = resume.config_of("Distillation", [*tiny("student"), "dataset.label=view"])
    with pytest.raises(UserError, match="tells 6 classes apart, this data has"):
        train(config)


def test_a_teacher_of_other_names_or_another_order_is_refused(tiny, teacher, tmp_path):
    last = teacher / "last_0.pth"
    content = checkpoint.read(last)
    names = checkpoint.names_of(content)
    assert names == content["label_names"] and len(names) == 6 and "Cardiomegaly" in names
    config = resume.config_of("Distillation", tiny("student"))
    config["trainor"] |= {"max_steps": 1}
    config["model"]["teacher"] = str(tmp_path / "other.pth")
    for other, told in (
        ([names[1], names[0], *names[2:]], f"in another order: number 0 is {names[1]} there"),
        ([*names[:5], "Fever"], f"other ones: number 5 is Fever there and {names[5]} here"),
    ):
        checkpoint.write({**content, "label_names": other}, tmp_path / "other.pth")
        with pytest.raises(UserError, match=told):
            train(config)
    content.pop("label_names")  # a checkpoint from before names were kept
    checkpoint.write(content, tmp_path / "other.pth")
    assert checkpoint.names_of(checkpoint.read(train(config) / "last_0.pth")) == names


def test_images_that_the_teacher_learned_from_are_not_scored(tiny, teacher, tmp_path):
    """A student whose own training split is clean still knows what its teacher saw."""
    last = teacher / "last_0.pth"
    content = checkpoint.read(last)
    from vilmedic_ssl.experiment.data import dataset_of
    from vilmedic_ssl.experiment.settings import check, typed

    config = resume.config_of("Distillation", tiny("student"))
    node = check(config)
    test = dataset_of(typed(node), node, "test")
    content["trained_on"] = torch.cat([content["trained_on"], test.members()[:1]])
    del content["format"]
    checkpoint.write(content, last)
    config["model"]["teacher"] = str(last)
    train(config)
    with pytest.raises(Leak, match="1 of .* images of split 'test' are among those"):
        ensemble(config)
