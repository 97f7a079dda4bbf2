"""Names become objects, and a wrong name, key or type becomes one sentence with its full path."""

from __future__ import annotations

import copy
import itertools
import random
import sys
from typing import Annotated, Any, Literal

import pytest
from conftest import CONFIG

from vilmedic_ssl import registry
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.manifest import Manifest
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.experiment import check, load_config
from vilmedic_ssl.models.simclr import SimCLR
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import find, protos
from vilmedic_ssl.schema import REQUIRED, Kind, build, complete, conform, plain, schema

PLUGIN = """
import numpy as np
import torch
from torch import nn

from vilmedic_ssl.data.datasets.base import Context, MedicalDataset
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.registry import proto


@proto("Spots")
class DottedImages(MedicalDataset):
    def __init__(self, context: Context, *, n: int = 48, side: int = 16):
        self.split, self.side, self.random = context.split, side, context.augment
        self.ids = [f"{context.split}{i}" for i in range(n)]
        self.labels, self.label_names = np.arange(n) % 2, ["even", "odd"]

    def item(self, index, seed):
        generator = torch.Generator().manual_seed(seed)
        shape = (2, 1, self.side, self.side) if self.random else (1, self.side, self.side)
        return {"images": torch.rand(shape, generator=generator) + index % 2}


@proto
class PullTogether(PretrainingModel):
    def __init__(self, *, width: int = 4, pull: float = 1.0):
        super().__init__()
        self.net, self.pull = nn.LazyLinear(width), pull
        self.net(torch.zeros(1, 256))

    def rows(self, images):
        return tuple(self.net(images[:, v].flatten(1)) for v in range(images.shape[1]))

    def score(self, *rows):
        return {"loss": self.pull * (rows[0] - rows[1]).square().mean(), "chance": 0.0}

    def encode(self, images):
        rows = self.net(images.flatten(1))
        return {"encoder": rows, "visual": rows}


@proto
def count_rows(features, out, *, factor: int = 1):
    for split in features.splits:
        yield f"{split}/count_rows/n", float(factor * len(features.get(split).ids))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The name of an importable third-party module with three protos."""
    (tmp_path / "spotted_package.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_plugins", {})
    yield "spotted_package"
    sys.modules.pop("spotted_package", None)


def test_the_index_names_every_proto_and_alias():
    for name, (folder, module, attribute) in registry.index().items():
        found = find(name, folder=folder)
        assert (found.__module__, found.__name__) == (module, attribute)
        assert name == attribute or name not in protos(folder)
    assert "SimCLR" in protos("models") and "Manifest" in protos("data/datasets")
    assert {"knn", "linear_probe", "plot_representation"} <= set(protos("post_processing"))


@pytest.mark.parametrize("name", sorted(registry.index()))
def test_every_key_of_every_proto_has_a_type_and_a_place_in_the_docstring(name):
    obj = find(name)
    for key, entry in schema(obj).items():
        assert entry.annotation is not Any, f"{name}.{key} has no type"
        assert key in (obj.__doc__ or ""), f"{name}.{key} is not in the docstring"


def test_aliases_name_the_same_thing():
    assert find("CNN") is find("VisualEncoder") is VisualEncoder
    node = {"proto": "SimCLR", "cnn": {"proto": "CNN", "backbone": "test_resnet"}}
    assert isinstance(build(node), SimCLR)


def test_key_aliases_of_vilmedic():
    keys = {"root": ".", "file": "image.tok", "custom_transform_val": "evaluate"}
    done = complete(keys, find("ImageDataset"), "dataset")
    assert done["custom_transform_validate"] == "evaluate" and "custom_transform_val" not in done


@pytest.mark.parametrize(
    ("name", "folder", "hint"),
    [
        ("SimCRL", "models", "did you mean 'SimCLR'"),
        ("Manifst", "data/datasets", "did you mean 'Manifest'"),
        ("lineer_probe", "post_processing", "did you mean 'linear_probe'"),
        ("SimCLR", "post_processing", "known: "),
        (["SimCLR"], "models", "expected a name"),
        (7, "models", "expected a name"),
    ],
)
def test_unknown_names(name, folder, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        find(name, folder=folder, where="a.b.proto")
    assert str(caught.value).startswith("a.b.proto: ")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.cnn.backbon", "x", ["model.cnn.backbon", "did you mean 'backbone'"]),
        ("model.los", {}, ["model.los", "did you mean 'loss'"]),
        ("model.loss.tau", "warm", ["model.loss.tau", "expected a number", "'warm'"]),
        ("model.loss.tau", True, ["model.loss.tau", "expected a number", "True"]),
        ("model.cnn.freeze", "no way", ["model.cnn.freeze", "expected true or false"]),
        ("model.cnn.in_chans", 2, ["model.cnn.in_chans", "2 is not one of 1, 3"]),
        ("model.cnn.proto", "Manifest", ["model.cnn.proto", "'Manifest' is no VisualEncoder"]),
        ("model.projection.proto", "SimCLR", ["model.projection.proto", "is no Projection"]),
        ("model.projection", 3, ["model.projection", "expected keys and values"]),
        ("model.cnn", None, ["model.cnn", "expected keys and values"]),
        ("trainor.batch_size", 1.5, ["trainor.batch_size", "expected an integer", "1.5"]),
        ("trainor.amp_dtype", "fp8", ["trainor.amp_dtype", "'bf16'", "'fp16'"]),
        ("trainor.proto", "SimCLR", ["trainor.proto"]),
        ("ensemblor.post_processing", ["nope"], ["ensemblor.post_processing.0", "'nope'"]),
        ("ensemblor.post_processing", [{"knn": {"kk": 1}}], ["post_processing.0.knn.kk", "'k'"]),
        ("ensemblor.post_processing", [{"knn": {}, "b": {}}], ["post_processing.0", "one plug-in"]),
        ("dataset.transform.resize", [3, "x"], ["dataset.transform.resize.1", "integer"]),
        ("proto", "SimCLR", ["proto"]),
        ("name", 32, ["name", "expected text", "quotes"]),
    ],
)
def test_a_wrong_key_or_type_is_named_with_its_path(key, value, words):
    place = node = plain(load_config(CONFIG))
    *above, last = key.split(".")
    for part in above:
        place = place[part]
    place[last] = value
    with pytest.raises(ConfigError) as caught:
        check(node)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named_with_its_type():
    with pytest.raises(ConfigError, match=r"model\.cnn\.backbone: this key is required \(text\)"):
        complete({"proto": "SimCLR", "cnn": {}}, SimCLR, "model")


@pytest.mark.parametrize("junk", [None, True, -1, 3.5, "x", [], {}, [1], {"a": 1}, "???"])
def test_junk_anywhere_is_accepted_or_refused_in_one_sentence(junk):
    """Every value of a whole config, one after the other, is replaced."""
    whole = plain(load_config(CONFIG))

    def places(node, path=()):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield (*path, key)
            if isinstance(value, (dict, list)):
                yield from places(value, (*path, key))

    for *above, last in places(whole):
        place = node = copy.deepcopy(whole)
        for key in above:
            place = place[key]
        place[last] = junk
        try:
            check(node)
        except ConfigError as error:
            assert "\n" not in str(error)
            assert str(above[0] if above else last) in str(error)


GOOD_BAD: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [0, -3], [1.0, True, "1", None, [1]]),
    (float, [0.5, 2], [True, "0.5", None, []]),
    (str, ["", "a"], [1, None, ["a"]]),
    (bool, [True, False], [0, 1, "true", None]),
    (int | None, [1, None], ["None", 1.5]),
    (list[str], [[], ["a"], ("a", "b")], ["a", ["a", 1], {"a": 1}, None]),
    (tuple[str, ...], [["a"], ()], ["a", [1]]),
    (dict[str, float], [{}, {"a": 1}], [{"a": "x"}, [1], None]),
    (Literal["a", "b"], ["a", "b"], ["c", None, ["a"]]),
    (int | list[int], [3, [3, 4]], ["3", [3, "4"], None]),
    (str | list[Any] | None, ["a", [1, {"b": 2}], None], [1, {"a": 1}]),
    (dict[str, Any] | None, [{"a": [1]}, None], [3, [1]]),
    (
        Annotated[dict, Kind("post_processing", single_key=True)],
        ["knn", {"knn": {}}, {"knn": None}, {"knn": {"k": 3}}],
        ["nope", {"knn": {"k": "3"}}, {}, None, 3],
    ),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), GOOD_BAD, ids=lambda v: str(v)[:40])
def test_types(annotation, good, bad):
    for value in good:
        done = conform(value, annotation, "a.key")
        assert conform(done, annotation, "a.key") == done  # what was checked can be checked again
    for value in bad:
        with pytest.raises(ConfigError, match=r"^a\.key"):
            conform(value, annotation, "a.key")


def test_types_property():
    """Whatever the value: it conforms, unchanged by a second pass, or a ConfigError says where."""
    draw = random.Random(0)

    def value(depth: int) -> Any:
        leaves = [None, True, 0, -7, 1.5, float("nan"), "", "knn", "a", b"raw", 10**30]
        if depth == 0 or draw.random() < 0.5:
            return draw.choice(leaves)
        items = [value(depth - 1) for _ in range(draw.randrange(3))]
        return draw.choice([items, dict(zip("abc", items, strict=False)), tuple(items)])

    for (annotation, *_), _ in itertools.product(GOOD_BAD, range(200)):
        given = value(3)
        try:
            done = conform(given, annotation, "here")
        except ConfigError as error:
            assert str(error).startswith("here")
        else:
            again = conform(done, annotation, "here")
            assert again == done or repr(again) == repr(done)  # nan is not equal to itself


def test_defaults_are_filled_in_and_spelled_out():
    done = complete({"proto": "Manifest", "manifest": "m.csv"}, Manifest, "dataset")
    assert done["transform"]["resize"] == 256 and done["labels"] == [] and done["label"] is None
    assert set(done) == {"proto", *schema(Manifest)}
    assert schema(Manifest)["manifest"].default is REQUIRED


def test_building_hands_the_context_to_nested_datasets(phantom):
    node = {
        "proto": "ImLabel",
        "image": {"root": str(phantom), "file": "image.tok", "image_path": str(phantom)},
        "label": {"root": str(phantom), "file": "dominant.tok"},
    }
    dataset = build(node, Context("test"))
    assert dataset.split == "test" and dataset.files.pipeline.views == 0


def test_build_without_a_proto():
    with pytest.raises(ConfigError, match="expected keys and values with a `proto`"):
        build({"cnn": {}})
    with pytest.raises(ConfigError, match="expected keys and values with a `proto`"):
        build("SimCLR")


def test_a_third_party_module_trains_and_is_scored(plugin, tmp_path):
    from vilmedic_ssl import ensemble, train

    node = {
        "name": "third",
        "ckpt_dir": str(tmp_path),
        "device": "cpu",
        "num_workers": 0,
        "plugins": [plugin],
        "dataset": {"proto": "Spots", "n": 24},
        "model": {"proto": "PullTogether", "pull": 2.0},
        "trainor": {"optim_params": {"lr": 0.1}, "batch_size": 8, "epochs": 1},
        "ensemblor": {"splits": ["test"], "post_processing": [{"count_rows": {"factor": 2}}]},
    }
    assert train(node) == tmp_path / "third"
    assert ensemble(node)["test/count_rows/n"] == 48


def test_keys_of_third_party_protos_are_checked_too(plugin):
    registry.load_plugins([plugin])
    with pytest.raises(ConfigError, match=r"model\.pul: there is no such key; did you mean 'pull'"):
        complete({"proto": "PullTogether", "pul": 1.0}, find("PullTogether"), "model")
    with pytest.raises(ConfigError, match="did you mean 'PullTogether'"):
        find("PullTogehter", folder="models")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["no_such_package.protos"], "cannot import 'no_such_package.protos'"),
        ([".relative"], "is no module"),
        ([""], "is no module"),
        ("a_string", "expected a list"),
        ([3], "expected text"),
    ],
)
def test_a_plugin_that_is_not_there(modules, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check({**plain(load_config(CONFIG)), "plugins": modules})
    assert str(caught.value).startswith("plugins")


def test_a_key_and_its_alias_exclude_each_other():
    node = {"custom_transform_validate": "evaluate", "custom_transform_val": "simclr"}
    with pytest.raises(ConfigError, match="custom_transform_validate: given twice"):
        complete({"root": "r", "file": "f", **node}, find("ImageDataset"), "dataset")
