"""Commands that the program tells its user to write exist, parse, and can be pasted."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from conftest import CONFIG, REPOSITORY

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main, parse, parser
from vilmedic_ssl.data.recipes.elsewhere import ELSEWHERE
from vilmedic_ssl.experiment import load_config
from vilmedic_ssl.experiment.sweep_verb import plan_of
from vilmedic_ssl.experiment.training import _views_key
from vilmedic_ssl.schema import plain

FILES = sorted((REPOSITORY / "vilmedic_ssl").rglob("*.py"))
VERBS = parser()._subparsers._group_actions[0].choices
NAMED = re.compile(r"vilmedic-ssl ([a-z_]+)((?: --[a-z-]+)*)")


def sentences(path):
    """The texts of a module that are not docstrings, pieces of an f-string joined."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        ):
            yield node.value


def test_every_verb_that_is_named_exists():
    """And none is a script of the checkout, which is not there in another folder."""
    count = 0
    for path in FILES:
        for text in sentences(path):
            assert not re.search(r"(bin|data)/(train|ensemble|demo|download)\.py", text), text
            for verb, options in NAMED.findall(text):
                count += 1
                assert verb in VERBS, f"{path.name}: {text}"
                known = VERBS[verb]._option_string_actions
                assert all(option in known for option in options.split()), f"{path.name}: {text}"
    assert count > 10


@pytest.mark.parametrize("root", ["data", "my data #2"])
@pytest.mark.parametrize("recipe", ELSEWHERE, ids=lambda recipe: recipe.name)
def test_what_follows_a_download(recipe, root):
    words = shlex.split(recipe.command(Path(root)))
    assert words[0] == "vilmedic-ssl"
    options = parse(words[1:])
    loaded = load_config(options.config, options.overrides)
    home = loaded.dataset.get("image", loaded.dataset)
    assert home.root.startswith(f"{root}/") and home.image_path == f"{root}/images/"
    folder = home.root.removeprefix(f"{root}/").rstrip("/")
    assert any(f"data/{folder}/" in one.layout for one in ELSEWHERE)


VIEWS = {  # config: another dataset for it
    "simclr-phantom": {},
    "simclr-mimic": {},
    "convirt-mimic": {},
    "simclr-folder": {"name": "x", "dataset": "{proto: Manifest, manifest: m.csv}"},
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_key_of_the_views_can_be_pasted(name):
    words = [f"{key}={value}" for key, value in VIEWS[name].items()]
    path = f"config/SELFSUP/{name}.yml"
    key = _views_key(plain(load_config(path, words))["dataset"])
    assert load_config(path, [*words, f"{key}=7"]) != load_config(path, words)


@pytest.mark.parametrize("kind", ["train", "lr_range"])
def test_what_follows_a_sweep(kind, tmp_path):
    path = "config/SWEEP/lr-range.yml"
    words = [f"ckpt_dir={tmp_path / 'my #1'}", "name=a b", f"sweep.measure={kind}"]
    plan = plan_of(path, [*words, "sweep.trials=3", "dataset.manifest=it's.csv"])
    command = shlex.split(plan.command({"trainor.optim_params.lr": 2.3e-05}))
    options = parse(command[1:])
    loaded = load_config(options.config, options.overrides)
    assert command[0] == "vilmedic-ssl" and options.verb == "train" and loaded.sweep is None
    assert loaded.trainor.optim_params.lr == 2.3e-05 and loaded.name == "a b-best"
    assert loaded.dataset.manifest == "it's.csv" and loaded.ckpt_dir == str(tmp_path / "my #1")


def test_what_follows_a_training_in_a_folder_with_a_space(tiny, tmp_path, capsys):
    place = [*tiny("run #3"), f"ckpt_dir={tmp_path / 'my runs'}"]
    assert main(["train", str(CONFIG), *place, "trainor.max_steps=1", "audit=null"]) == 0
    assert (tmp_path / "my runs" / "run #3" / "last_0.pth").is_file()
    last = capsys.readouterr().err.splitlines()[-1]
    words = shlex.split(last.split("score it with ")[1])
    assert words[:2] == ["vilmedic-ssl", "ensemble"]
    assert load_config(parse(words[1:]).config).name == "run #3"


LINE = "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg"  # as MIMIC-CXR is laid out
UNTOLD = {"convirt-padchest", "convirt-indiana"}  # ViLMedic's lists name images, not patients
CONFIGS = sorted(p for p in (REPOSITORY / "config").rglob("*.yml") if p.parent.name != "PROMPTS")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_patients_are_known_where_a_layout_tells_them(path):
    dataset = yaml_config.load(path)["dataset"]
    home = dataset.get("image", dataset)
    if dataset["proto"] in ("ImageDataset", "ImLabel", "ImSeq", "ImSeqLabel"):
        pattern = home.get("patient_pattern")
        assert (pattern is None) == (path.stem in UNTOLD)
        if pattern and "mimic" in home["root"]:
            assert re.search(pattern, LINE).group(1) == "p10000032"
    elif dataset["proto"] == "ImageFolder":
        assert "dataset.patient_pattern=" in path.read_text().split("dataset:")[0]
    else:  # a table has a column of patients, and MedMNIST's files tell none
        assert dataset["proto"] in ("Manifest", "MedMNIST")
