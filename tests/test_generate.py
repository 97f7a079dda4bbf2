"""Images drawn from reports, looked at for copies, ranked, judged; reports scored and written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import resume
import torch
from methods import node_of
from PIL import Image

from vilmedic_ssl.config import load
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.experiment import ensemble, train
from vilmedic_ssl.experiment.scoring import features_of, open_run
from vilmedic_ssl.nets.dalle_sampling import Sampling
from vilmedic_ssl.post_processing import _copies, _drawn

PROMPTS = {"labels": {"Cardiomegaly": ["cardiomegaly"], "Pneumothorax": ["pneumothorax"]}}
FINDINGS = "dataset.labels=[Cardiomegaly, Consolidation, Pneumothorax]"


@pytest.fixture(scope="module")
def runs(phantom, tmp_path_factory):
    """A VAE, a DALLE on it, a ConVIRT and a classifier, five steps each."""
    from conftest import tiny_overrides

    place = tmp_path_factory.mktemp("drawn")
    names = {}
    for name in ("VAE", "DALLE", "ConVIRT"):
        names[name] = train(resume.config_of(name, tiny_overrides(phantom, place, name)))
    judge = load(resume.CONFIG, [*tiny_overrides(phantom, place, "judge"), FINDINGS])
    judge["dataset"].pop("label")
    judge["model"] = {**node_of("Classifier", "no norm"), "classes": None}
    judge["dataset"]["transform"]["views"], judge["validator"]["metrics"] = 1, ["accuracy"]
    names["judge"] = train(judge)
    return names


def scored(runs, *plugins, splits=("test",), labels=False, **ensemblor):
    """results.json of the DALLE, and its folder."""
    config = load(Path(runs["DALLE"]) / "config_0.yml")
    if labels:
        config["dataset"] |= {"labels": ["Cardiomegaly", "Consolidation", "Pneumothorax"]}
        config["dataset"]["label"] = None
    listed = {"splits": list(splits), "post_processing": list(plugins), **ensemblor}
    config["ensemblor"] |= {**listed, "name": "drawn"}
    config["overwrite"] = True
    return ensemble(config), Path(runs["DALLE"]) / "evaluations/drawn/post_processing"


def newest(folder):
    return sorted(folder.glob("generate_images_*_[0-9]*"))[-1]


def test_images_lie_beside_their_texts_and_nothing_is_overwritten(runs, capsys):
    results, folder = scored(runs, generate_images=True, num_images=3)
    first = newest(folder)
    _, _ = scored(runs, generate_images=True, num_images=3)
    second = newest(folder)
    assert first != second and first.is_dir()
    told = json.loads((first / "generated.json").read_text())
    assert len(told["reports"]) == 4 and "synthetic" in told["note"]
    for report in told["reports"]:
        home = first / report["folder"]
        assert (home / "report.txt").read_text().strip() == report["text"]
        assert report["drawn"] >= 3
    for image in told["images"]:
        with Image.open(first / image["file"]) as picture:
            assert picture.size == (32, 32) and "synthetic" in picture.info["Description"]
        assert not image["nearest"]["copy"] and 0 <= image["nearest"]["codes"] <= 1
    assert 0 <= results["test/generate_images/copies"] <= 1
    assert (first / "grid.png").is_file()
    assert "generate_images" in (folder.parent / "report.html").read_text()
    assert "failed" not in capsys.readouterr().err
    same = [(f / told["images"][0]["file"]).read_bytes() for f in (first, second)]
    assert same[0] == same[1]  # the seed of the run draws both


def test_ranked_judged_begun_and_of_ones_own(runs, capsys):
    ranked = {"rerank": str(runs["ConVIRT"]), "candidates": 4, "num_images": 2, "reports": 3}
    judged = {"judge": str(runs["judge"]), "num_images": 2, "reports": 8, "begin": 0.5}
    results, folder = scored(
        runs,
        {"generate_images": {**ranked, **judged, "copies": "mark", "draws": 30}},
        labels=True,
    )
    assert "failed" not in capsys.readouterr().err
    told = json.loads((newest(folder) / "generated.json").read_text())
    by_report = {}
    for image in told["images"]:
        by_report.setdefault(image["file"].split("/")[0], []).append(image["fits"])
    assert len(by_report) == 8
    assert all(fits == sorted(fits, reverse=True) and len(fits) == 2 for fits in by_report.values())
    assert 0 <= results["test/generate_images/judge/auroc"] <= 1
    share = results["test/generate_images/judge/named_first"]
    assert 0 <= share <= 1  # of the reports of two patients
    assert results["test/generate_images/judge/named_first/interval"].startswith("no interval: ")
    assert 1 / 3 <= results["test/generate_images/judge/named_first/chance"] <= 1
    own = {"texts": ["Small left effusion.", "No effusion."], "num_images": 2, "top_p": 0.9}
    guided = {"cond_scale": 2.0, "filter_thres": 0.5, "temperature": 0.8, "seed": 5}
    scored(runs, {"generate_images": {**own, **guided}})
    told = json.loads((newest(folder) / "generated.json").read_text())
    assert [report["text"] for report in told["reports"]] == own["texts"]


def test_films_are_begun_with(runs):
    """The first codes of an image are those of its report's film."""
    experiment, node, files, contents = open_run(load(runs["DALLE"] / "config_0.yml"))
    features = features_of(experiment, node, contents, files, "tag", splits=["test"])
    model = features.models[0]
    request = _drawn.chosen_requests(features, "test", 1, [], [])[0]
    seen = {}
    generate = model.generate
    model.generate = lambda *a, **k: seen.update(k) or generate(*a, **k)
    check = _copies.CopyCheck(features, model)
    artist = _drawn.Artist(
        *(features, "test", Sampling()),
        begin=0.25,
        rank=None,
        check=check,
        withhold=False,
        batch_size=2,
    )
    artist.draw([request], 1, 1)
    film = features.inputs("test", [request.row])
    assert torch.equal(seen["first"][0], model.codes(film)[0, :16])


def test_a_training_film_is_a_copy_and_is_withheld(runs, capsys):
    experiment, node, files, contents = open_run(load(runs["DALLE"] / "config_0.yml"))
    features = features_of(experiment, node, contents, files, "tag", splits=["test"])
    model = features.models[0]
    check = _copies.CopyCheck(features, model)
    films = features.inputs("train", [3, 8])
    codes = model.codes(films).numpy()
    found = check.look(films, codes)
    assert [near.pixels_id for near in found] == [features.get("train").ids[i] for i in (3, 8)]
    assert all(near.copy and near.pixels < 1e-3 and near.codes == 1 for near in found)
    brighter = (films * 0.5 + 0.3).clamp(0, 1)  # not hidden by another contrast
    assert all(near.copy for near in check.look(brighter, model.codes(brighter).numpy()))
    others = features.get("test")
    rows = list(range(len(others.ids)))
    new = features.inputs("test", rows)
    share = np.mean([near.copy for near in check.look(new, model.codes(new).numpy())])
    assert share <= 0.1  # by construction about 1 % each way, of films that it was set by
    model.generate = lambda ids, *a, **k: (
        films[:1].expand(len(ids), -1, -1, -1),
        _codes(codes, ids),
    )
    request = _drawn.Request("a text", "film")
    artist = _drawn.Artist(
        *(features, "test", Sampling()),
        begin=0.0,
        rank=None,
        check=check,
        withhold=True,
        batch_size=4,
    )
    artist.draw([request], 2, 2)
    assert request.copies == request.drawn == 2 * _drawn.ROUNDS and not request.kept
    assert "only 0 are no copies of training films" in capsys.readouterr().err


def _codes(codes, ids):
    return torch.from_numpy(codes[:1]).expand(len(ids), -1)


def test_reports_are_scored_and_completed(runs, capsys):
    results, folder = scored(
        runs,
        {"report_likelihood": {"images": 6, "candidates": 4, "draws": 30}},
        {"complete_reports": {"images": 1, "words": 0, "candidates": 2, "split": "train"}},
        {"complete_reports": {"images": 2, "candidates": 5}},
        {"word_heatmap": {"images": 1}},
        {"complete_reports": {"images": 1, "candidates": 3, "begin": "No", "split": "validate"}},
        {"zero_shot": {"prompts": PROMPTS, "protocol": "class_prompts", "references": []}},
        labels=True,
    )
    told = capsys.readouterr().err
    assert "failed" not in told and "DALLE does not tell where in an image a text is seen" in told
    assert results["test/report_likelihood/chance"] == 0.25
    for name in ("", "image_given_text/", "text_alone/"):
        assert 0 <= results[f"test/report_likelihood/{name}accuracy"] <= 1
    told = json.loads(next(folder.glob("report_likelihood_*.json")).read_text())["test"]
    assert all(len({c["text"] for c in image["candidates"]}) == 4 for image in told)
    pages = json.loads(next(folder.glob("complete_reports_*_test.json")).read_text())["images"]
    for page in pages:
        likelihood = [ending["log_p_image_given_text"] for ending in page["endings"]]
        assert likelihood == sorted(likelihood, reverse=True)
        begin = page["begin"].lower().replace(" ", "")
        for ending in page["endings"]:
            assert ending["text"].replace(" ", "").startswith(begin)
    assert next(folder.glob("complete_reports_*_validate.png")).is_file()
    assert 0 <= results["test/zero_shot_class_prompts/auroc"] <= 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"ids": ["nobody.png"]}, "no film 'nobody.png' with a report"),
        ({"num_images": 0}, "num_images: 0; write 1 or more"),
        ({"begin": 1.0}, "begin: 1.0; write a share"),
        ({"candidates": 9}, "candidates: 9; needs rerank"),
        ({"texts": ["A."], "begin": 0.5}, "have no film to begin with"),
        ({"rerank": "VAE"}, "compares no images with texts"),
        ({"judge": "VAE"}, "no labels|tells no classes"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"cond_scale": 2.0, "rerank": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_one_sentence(runs, keys, told, capsys):
    for name in ("rerank", "judge"):
        if keys.get(name) in runs:
            keys = {**keys, name: str(runs[keys[name]])}
    try:
        scored(runs, {"generate_images": {"reports": 1, "num_images": 1, **keys}})
        error = capsys.readouterr().err
    except (ConfigError, UserError) as caught:
        error = str(caught)
    assert re.search(told, error), error


def test_reconstructions_are_drawn_while_a_model_trains(tiny, capsys):
    for name in ("VAE", "MAE"):
        config = resume.config_of(name, tiny(name))
        config["validator"]["reconstructions"] = 3
        folder = train(config)
        pictures = sorted((folder / "reconstructions").glob("epoch_*_step_*_0.png"))
        assert pictures and f"reconstructions {pictures[-1]}" in capsys.readouterr().err
    config["overwrite"] = True
    config["trainor"]["max_steps"] = 2
    train(config)
    assert [p.name for p in pictures[-1].parent.glob("*.png")] == ["epoch_0001_step_000002_0.png"]
    config = resume.config_of("SimCLR", tiny("still"))
    config["validator"]["reconstructions"] = 3
    with pytest.raises(ConfigError, match="SimCLR draws no images of this data; write 0"):
        train(config)


def test_other_models_say_what_is_missing(runs, capsys):
    config = load(runs["VAE"] / "config_0.yml")
    listed = ["report_likelihood", "complete_reports", "plot_reconstruction"]
    config["ensemblor"] |= {
        "splits": ["test"],
        "post_processing": [{name: {}} for name in listed],
        "generate_images": True,
    }
    ensemble(config)
    told = capsys.readouterr().err
    for name in ("generate_images", "report_likelihood", "complete_reports"):
        assert f"{name} did not finish: VAE" in told
    assert "plot_reconstruction did not" not in told
