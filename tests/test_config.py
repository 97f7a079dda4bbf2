"""YAML, includes, overrides and interpolation; what is saved can be loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CONFIG, REPOSITORY
from omegaconf.errors import OmegaConfBaseException

from vilmedic_ssl import config
from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.experiment import load_config
from vilmedic_ssl.schema import plain

YAMLS = sorted(p for p in (REPOSITORY / "config").rglob("*.yml") if p.parent.name != "PROMPTS")


def files(folder: Path, **texts: str) -> Path:
    """YAML files by name; returns the first."""
    for name, text in texts.items():
        path = folder / f"{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.yml"


def missing(node, path=""):
    """Dotted keys whose value the user must supply."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        here = f"{path}.{key}" if path else str(key)
        if value == "???":
            yield here
        elif isinstance(value, (dict, list)):
            yield from missing(value, here)


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_every_shipped_file_loads(path):
    needed = [f"{key}=x" for key in [*missing(config.load(path)), "name"]]
    loaded = load_config(path, needed)
    assert loaded.name == "x" and (loaded.flow.stages if "flow" in loaded else loaded.model.proto)
    again = config.freeze(plain(loaded))
    assert plain(again) == plain(loaded)


def test_there_are_shipped_files():
    assert len(YAMLS) >= 4


# ---- includes ------------------------------------------------------------------------------------


def test_includes_merge_left_to_right_below_the_file(tmp_path):
    path = files(
        tmp_path,
        top="includes: [one.yml, two.yml]\na: {x: top}\nl: [9]\nn: null",
        one="a: {x: 1, y: 1, z: 1}\nl: [1, 2, 3]\nn: 5",
        two="a: {y: 2}",
    )
    assert config.load(path) == {"a": {"x": "top", "y": 2, "z": 1}, "l": [9], "n": None}


def test_includes_are_relative_to_the_file_and_may_nest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "top/a.yml": "includes: [parts/b.yml]",
        "top/parts/b.yml": "includes: [../../c.yml]\nb: 1",
        "c.yml": "c: 2",
    }.items():
        files(tmp_path / Path(name).parent, **{Path(name).stem: text})
    assert config.load(tmp_path / "top/a.yml") == {"b": 1, "c": 2}
    assert config.load("top/a.yml") == {"b": 1, "c": 2}


def test_a_diamond_is_no_cycle(tmp_path):
    path = files(
        tmp_path,
        top="includes: [left.yml, right.yml]",
        left="includes: [base.yml]\na: left",
        right="includes: [base.yml]\nb: right",
        base="a: base\nb: base\nc: base",
    )
    assert config.load(path) == {"a": "base", "b": "right", "c": "base"}


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, dict(zip("abc", "bcb"))])  # noqa: B905
def test_a_cycle_is_named(tmp_path, links):
    path = files(tmp_path, **{name: f"includes: [{to}.yml]" for name, to in links.items()})
    with pytest.raises(ConfigError, match="includes itself") as caught:
        config.load(path)
    assert all(f"{name}.yml" in str(caught.value) for name in links)


@pytest.mark.parametrize("entry", ["other.yml", "[3]", "{a: b}", "3"])
def test_includes_must_be_a_list_of_files(tmp_path, entry):
    with pytest.raises(ConfigError, match="includes"):
        config.load(files(tmp_path, top=f"includes: {entry}"))


def test_a_missing_include(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config file base\.yml"):
        config.load(files(tmp_path, top="includes: [base.yml]"))


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "line "),
        ("a: 1\na: 2", "duplicate key"),
        ("a: 1\n\tb: 2", "line 2"),
        ("- 1", "expected keys and values"),
        ("a: !!python/object/apply:os.getcwd []", "readable YAML"),
        ("a: &a [*a]", "readable YAML"),
        ("a: '${'", "readable YAML"),
    ],
)
def test_unreadable_files(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config.load(files(tmp_path, bad=text))
    assert "bad.yml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "bad.yml").write_bytes(b"a: \xff\xfe\x00")
    with pytest.raises(ConfigError, match="readable YAML"):
        config.load(tmp_path / "bad.yml")


def test_a_missing_file_and_its_neighbours(tmp_path):
    files(tmp_path, simclr="a: 1")
    with pytest.raises(ConfigError, match=r"there is no config file .*did you mean .*simclr\.yml"):
        config.load(tmp_path / "simclear.yml")


def test_a_folder_stands_for_the_one_config_in_it(tmp_path):
    with pytest.raises(ConfigError, match=r"simclr-folder\.yml dataset\.root="):
        config.load(tmp_path)
    files(tmp_path, config_0="a: 1", other="a: 2")
    assert config.load(tmp_path, ["b=3"]) == {"a": 1, "b": 3}
    files(tmp_path, config_1="a: 1")
    with pytest.raises(ConfigError, match=r"holds config_0\.yml, config_1\.yml; name one"):
        config.load(tmp_path)
    with pytest.raises(ConfigError, match="no config file .*; name a .yml file or a run folder"):
        config.load(tmp_path / "none/x")


def test_vilmedics_old_place_of_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.find_file("config/simclr-phantom.yml") == CONFIG
    files(tmp_path / "config/SELFSUP/CLIP", clip="a: 1")
    assert config.load("config/CLIP/clip.yml") == {"a": 1}
    assert config.load(tmp_path / "config/CLIP/clip.yml") == {"a": 1}
    files(tmp_path / "config/CLIP", clip="a: 2")
    assert config.load("config/CLIP/clip.yml") == {"a": 2}  # what is really there wins
    for place in ("CLIP", "SELFSUP/CLIP"):
        found = config.find_file(f"config/{place}/convirt-mimic.yml")
        assert found == REPOSITORY / "config/SELFSUP/convirt-mimic.yml"


# ---- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("v=1", 1),
        ("v=-1", -1),
        ("v=1e-3", 1e-3),
        ("v=5e-5", 5e-5),
        ("v=1.0e-3", 1e-3),
        ("v=.5", 0.5),
        ("v=true", True),
        ("v=null", None),
        ("v=", None),
        ("v=text", "text"),
        ("v='1'", "1"),
        ('v="a b"', "a b"),
        ("v=a=b", "a=b"),
        ("v=/a/b c.csv", "/a/b c.csv"),
        ("v=[train, validate]", ["train", "validate"]),
        ("v=[train,validate,test]", ["train", "validate", "test"]),
        ("v=[]", []),
        ("v=[1, {x: [2]}]", [1, {"x": [2]}]),
        ("v={}", {}),
        ("v={lr: 1e-3}", {"lr": 1e-3}),
        ("v=2024-01-01", "2024-01-01"),
        ("v=!!python/name:os.system x", "!!python/name:os.system x"),
        ("v=???", "???"),
    ],
)
def test_values_are_yaml(tmp_path, text, value):
    found = config.load(files(tmp_path, top="w: 1"), [text])["v"]
    assert found == value and type(found) is type(value)


def test_overrides_merge_mappings_and_replace_the_rest(tmp_path):
    path = files(tmp_path, top="a: {b: {c: 1, d: 2}, l: [{x: 1, y: 2}, 5]}")
    assert config.load(path, ["a.b={d: 3, e: 4}"])["a"]["b"] == {"c": 1, "d": 3, "e": 4}
    assert config.load(path, ["a.b=7", "a.l=[1]"])["a"] == {"b": 7, "l": [1]}
    assert config.load(path, ["a.l.0.x=9", "a.l.1=6"])["a"]["l"] == [{"x": 9, "y": 2}, 6]
    assert config.load(path, ["a.l.0={y: 3}"])["a"]["l"][0] == {"x": 1, "y": 3}
    assert config.load(path, ["n.e.w=1"])["n"] == {"e": {"w": 1}}
    assert config.load(path, ["a=null"])["a"] is None
    assert config.load(path, ["s=1", "s=2"])["s"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--flag", "is not an override; write key=value"),
        ("flag", "is not an override; write key=value"),
        ("=1", "is not an override"),
        ("a..b=1", "is not an override"),
        (".a=1", "is not an override"),
        ("a b=1", "is not an override"),
        ("a.l.2=1", "a.l has 2 items, numbered from 0"),
        ("a.l.x=1", "a.l has 2 items"),
        ("a.l.²=1", "a.l has 2 items"),
        ("a.l.1.x=1", "a.l.1 is 5 and has no keys"),
        ("v=[1", "not readable YAML"),
        ("v=[*a*]", "\"v=['*a*', '*b*']\""),
        ("v={a: 1", "not readable YAML"),
        ("v=[!!python/name:os.system x]", "not readable YAML"),
    ],
)
def test_bad_overrides(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        config.load(files(tmp_path, top="a: {l: [1, 5]}"), [text])
    assert words in str(caught.value) and text.split("=")[0] in str(caught.value)


# ---- interpolation -------------------------------------------------------------------------------


def test_interpolation_of_keys(tmp_path):
    path = files(tmp_path, top="a: {b: 3, l: [4, 5]}\nc: ${a.b}\nd: x${c}y${a.l[1]}\ne: ${a}")
    loaded = config.load(path, ["f=${a.b}", "a.b=7"])
    assert loaded["c"] == loaded["f"] == 7 and loaded["d"] == "x7y5"
    assert loaded["e"] == loaded["a"] == {"b": 7, "l": [4, 5]}


def test_relative_interpolation(tmp_path):
    assert config.load(files(tmp_path, top="a: {b: 1, c: '${.b}'}"))["a"]["c"] == 1


@pytest.mark.parametrize(
    ("text", "words"), [("a: ${b.c}", "b.c"), ("a: ${b}\nb: ${a}", "ecursive")]
)
def test_dangling_interpolation(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config.load(files(tmp_path, top=text))
    assert str(caught.value).startswith("a: ")


ENVIRONMENT = [
    "a: ${oc.env:SECRET}",
    "a: ${ oc.env : SECRET}",
    "a: x${oc.env:SECRET,default}y",
    "a: [{b: '${oc.env:SECRET}'}]",
    "n: oc.env\na: ${${n}:SECRET}",
    "n: env\na: ${oc.${n}:SECRET}",
    "n: $\na: '${n}{oc.env:SECRET}'",
    "n: '{oc.env:SECRET}'\na: $${n}",
    "n: ':SECRET}'\na: '$${m}{oc.env${n}'\nm: ''",
    "a: \\${oc.env:SECRET}",
    "a: ${oc.decode:${oc.env:SECRET}}",
    "a: ${oc.create:'x'}",
]


@pytest.mark.parametrize("text", ENVIRONMENT)
@pytest.mark.parametrize("flag", ["", "\nallow_env: true"])
def test_the_environment_is_closed_to_files(tmp_path, monkeypatch, text, flag):
    """A config from elsewhere must not read secrets into a saved config, however it spells that."""
    monkeypatch.setenv("SECRET", "s3cret")
    path = files(tmp_path, top=text + flag)
    try:
        node = config.load(path)
    except ConfigError as error:
        assert "s3cret" not in str(error)
        return
    try:
        read = json.dumps([node, plain(config.freeze(node))])
    except OmegaConfBaseException:
        read = ""
    assert "s3cret" not in read


def test_the_environment_is_opened_by_the_command_line_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/a/b")
    path = files(tmp_path, top="a: ${oc.env:SOMEWHERE}/c\nallow_env: true")
    with pytest.raises(ConfigError, match=r"^a: .*allow_env=true on the command line"):
        config.load(path)
    assert config.load(path, ["allow_env=true"]) == {"a": "/a/b/c"}
    with pytest.raises(ConfigError):
        config.load(path, ["allow_env=false"])
    other = files(tmp_path, other="a: ${oc.decode:'1'}")
    with pytest.raises(ConfigError, match="is not allowed"):
        config.load(other, ["allow_env=true"])


# ---- the whole -----------------------------------------------------------------------------------


def test_the_config_is_frozen():
    loaded = load_config(CONFIG)
    for change in (
        lambda: setattr(loaded, "seed", 3),
        lambda: setattr(loaded.trainor, "epochs", 3),
        lambda: loaded.dataset.update({"x": 1}),
        lambda: loaded.ensemblor.splits.append("x"),
    ):
        with pytest.raises(OmegaConfBaseException):
            change()
    with pytest.raises(OmegaConfBaseException):
        loaded.no_such_key  # noqa: B018
    assert loaded.seed == 0 and loaded.trainor.epochs == 30


def test_the_saved_config_gives_the_same_run(tiny):
    """Everything is spelled out, nothing refers to defaults, includes or the command line."""
    assert main(["train", str(CONFIG), *tiny("saved"), "seed=3"]) == 0
    saved = Path(load_config(CONFIG, tiny("saved")).ckpt_dir) / "saved/config_3.yml"
    head = saved.read_text(encoding="utf-8").splitlines()[0]
    once = plain(load_config(saved))
    assert head == f"# format 1, hash {config.digest(once)}"
    assert once == plain(load_config(CONFIG, [*tiny("saved"), "seed=3"]))
    assert config.dump(once) == saved.read_text(encoding="utf-8").split("\n", 1)[1]
    assert "???" not in saved.read_text() and "${" not in saved.read_text()


def test_the_hash_sees_every_value_and_no_order():
    node = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert config.digest(node) == config.digest({"b": {"d": None, "c": [1, 2]}, "a": 1})
    for other in ({**node, "a": 2}, {**node, "a": "1"}, {**node, "b": {"c": [2, 1], "d": None}}):
        assert config.digest(other) != config.digest(node)
    assert len(config.digest(node)) == 16


def test_vilmedics_single_plug_in_forms(tmp_path):
    """`- knn`, `- knn: {k: 3}` and `- knn:` are one plug-in each."""
    loaded = load_config(CONFIG, ["ensemblor.post_processing=[knn, {knn: {k: 3}}, {knn: null}]"])
    assert [item.knn.k for item in loaded.ensemblor.post_processing] == [20, 3, 20]
