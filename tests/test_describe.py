"""`vilmedic-ssl describe`: what it prints is YAML the program takes back."""

from __future__ import annotations

import sys
import types
import typing
from typing import Any

import pytest
import yaml
from test_architecture import fresh

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.describe import SECTIONS, _section, describe, listing, opening
from vilmedic_ssl.executors.settings import PostProcessing
from vilmedic_ssl.registry import FOLDERS, find, protos
from vilmedic_ssl.schema import REQUIRED, complete, conform, schema

HOMES = {"data/datasets": "dataset", "models": "model"}
NAMES = [name for folder in FOLDERS for name in protos(folder)]


def read(text: str, tmp_path) -> Any:
    """The text through the program's own reader, which must agree with plain YAML."""
    (tmp_path / "node.yml").write_text(text, encoding="utf-8")
    node = yaml_config.read_yaml(tmp_path / "node.yml")
    assert node == yaml.safe_load(text)
    return node


def example(annotation: Any) -> Any:
    """Some value of a required key's type."""
    samples = {str: "x", int: 1, float: 1.0, bool: True, list: ["x"], dict: {"lr": 0.1}}
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return example(typing.get_args(annotation)[0])
    return samples[typing.get_origin(annotation) or annotation]


def filled(node: dict[str, Any], obj: Any) -> dict[str, Any]:
    """`???` replaced as a user would."""
    made = dict(node)
    for name, key in schema(obj).items():
        if made[name] == "???":
            assert key.default is REQUIRED
            made[name] = example(key.annotation)
        elif isinstance(made[name], dict) and not isinstance(key.default, dict):
            inner = [c for c in (key.annotation, *typing.get_args(key.annotation)) if _keyed(c)]
            named = typing.get_origin(key.annotation) is dict
            if inner and named:
                made[name] = {k: filled(keys, inner[0]) for k, keys in made[name].items()}
            elif inner:
                made[name] = filled(made[name], inner[0])
    return made


def _keyed(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation.__module__ != "builtins"


@pytest.mark.parametrize("name", [*NAMES, *SECTIONS])
def test_what_is_printed_is_accepted(name, tmp_path):
    node = read(describe(name), tmp_path)
    if name in SECTIONS:
        obj = _section(name)
        node = filled(node[name], obj)
        assert complete(node, obj, name) == node
    elif name in protos("post_processing"):
        ((given, keys),) = node.items()
        made = {given: filled(keys, find(name))}
        assert conform(made, PostProcessing, "") == made
    else:
        home = next((title for key, title in HOMES.items() if name in protos(key)), None)
        node = node[home] if home else node
        made = filled(node, find(name))
        assert node["proto"] == name and complete(made, find(name), "") == made
        required = {k for k, key in schema(find(name)).items() if key.default is REQUIRED}
        bare = {k: made[k] for k in made if k in required}
        without_proto = {k: v for k, v in made.items() if k != "proto"}
        assert complete(bare, find(name), "") == without_proto  # nothing but defaults was printed


def test_every_key_carries_its_meaning():
    text = describe("Manifest")
    assert (
        "dataset:\n  proto: Manifest\n" in text
        and "manifest: ???" in text
        and "# CSV or Parquet file with a `path` column" in text
    )
    assert "\n    # short side after reading, pixels" in text and "\n    resize: 256" in text
    assert "cannot do without. (keys of Classifier, or text, or null)" in " ".join(
        describe("Distillation").replace("\n  # ", " ").split()
    )
    assert describe("CNN").startswith("# A timm network") and "proto: CNN\n" in describe("CNN")
    assert (
        opening("One. Two.") == "One." and opening("One e.g.two\nthree.\n\nFour.")[-6:] == "three."
    )


def test_sections_of_many_blocks():
    flow, sweep = yaml.safe_load(describe("flow"))["flow"], yaml.safe_load(describe("sweep"))
    assert flow["stages"]["NAME"]["labels"] is True and flow["budgets"] == []
    assert "low" in sweep["sweep"]["space"]["NAME"] and "each item with" in describe("flow")
    assert yaml.safe_load(describe("budget"))["budget"]["unlabelled"] == "drop"


def test_an_abbreviation_ends_no_sentence():
    told = "A way (Bergstra et al. 2011, eq. 3). More."
    assert opening(told) == told.removesuffix(" More.")
    assert not [line for line in listing().splitlines() if line.endswith("et al.")]


def test_listing_and_refusal(capsys):
    assert main(["describe"]) == 0
    assert capsys.readouterr().out.strip() == listing()
    assert all(f"  {name} " in listing() for name in NAMES) and "(also CNN)" in listing()
    assert main(["describe", "knn", "SimCLR"]) == 0
    assert "knn:" in (out := capsys.readouterr().out) and "proto: SimCLR" in out
    assert main(["describe", "SimCRL"]) == 2
    assert "did you mean 'SimCLR'" in capsys.readouterr().err
    for wrong, right in (
        ("simclr", "SimCLR"),
        ("trainer", "trainor"),
        ("imagefolder", "ImageFolder"),
    ):
        assert main(["describe", wrong]) == 2 and repr(right) in capsys.readouterr().err


def test_a_plug_in_is_described(tmp_path, monkeypatch, capsys):
    (tmp_path / "described_lab.py").write_text(
        "from vilmedic_ssl.registry import proto\n"
        "@proto\nclass Described:\n"
        "    '''Ours.\n\n    Attributes:\n        width: of it.\n    '''\n"
        "    def __init__(self, *, width: int = 3): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["describe", "Described", "--plugins", "described_lab"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"proto": "Described", "width": 3}
    sys.modules.pop("described_lab")


def test_the_listing_needs_no_torch():
    heavy = "{'torch', 'timm', 'transformers', 'numpy', 'sklearn', 'omegaconf'}"
    code = f"import sys\nfrom vilmedic_ssl.describe import listing\nlisting()\nprint({heavy} & set(sys.modules))"  # noqa: E501
    assert fresh(code).strip() == "set()"
