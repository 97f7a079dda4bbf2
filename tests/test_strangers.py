"""A checkpoint may come from a stranger: nothing that its config says opens a file, reaches the
network, starts a program or imports a module.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping

import pytest
import torch
from conftest import CONFIG
from methods import node_of
from tiny_bert import REPORTS, save_bert

from vilmedic_ssl import AutoModel
from vilmedic_ssl.auto import described
from vilmedic_ssl.cli import main
from vilmedic_ssl.config import load
from vilmedic_ssl.data.tokenizers import as_data, restore, train_tokenizer
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.dalle_files import read_vae
from vilmedic_ssl.executors.init_weights import start_from
from vilmedic_ssl.executors.init_weights_read import tokenizer_in
from vilmedic_ssl.experiment import load_config, train
from vilmedic_ssl.experiment.settings import check
from vilmedic_ssl.experiment.teacher import _classifier
from vilmedic_ssl.nets.architecture import OPTIONS, TEXT_TYPES, refuse_options, text_config
from vilmedic_ssl.nets.text import TextEncoder, architecture
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.schema import build

BAIT = "stranger_bait"
OUTWARD = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec")
TOUCHING = ("open", "os.listdir", "os.scandir", "import", "glob.glob")
_events: list[str] = []
_listens = [False]


def _hook(event, args):
    if _listens[0] and (
        event in OUTWARD or (event in TOUCHING and any(BAIT in str(arg) for arg in args))
    ):
        _events.append(f"{event} {args[0]}")


sys.addaudithook(_hook)


@pytest.fixture
def bait(tmp_path):
    """A file to be left alone."""
    path = tmp_path / BAIT
    path.write_text("path\n")
    return path


@pytest.fixture
def quiet(bait):
    """Fails when the bait is touched, or anything outside this process."""
    _events.clear()
    _listens[0] = True
    yield
    _listens[0] = False
    assert not _events


def stored(name):
    """What training of a method writes, as far as it is read again, and weights of that model."""
    keys = ["name=x", "dataset.text.tokenizer_max_len=9"]
    config = check(load("config/SELFSUP/convirt-phantom.yml", keys))
    model, tokenizer = node_of(name, "batch norm"), None
    if name in ("ConVIRT", "DALLE"):
        trained = train_tokenizer(REPORTS, 200)
        tokenizer = as_data(trained)
        if "encoder" in model:
            keys = {**model["encoder"], "proto": None, "intermediate_size": None}
            model["encoder"] = {**model["encoder"], "config": architecture(keys)}
    if name == "Distillation":
        model["teacher"] = node_of("Classifier", "batch norm")
    config = {**config, "model": model}
    content = dict.fromkeys(checkpoint.OF_A_RUN) | {"config": config, "seed": 0}
    content |= {"tokenizer": tokenizer, "trained_on": torch.tensor([1])}
    content |= {"progress": {"lower_is_better": True}, "model": {}}
    content["model"] = described(content, "x")[0].state_dict()
    return content


@pytest.fixture(scope="module")
def contents():
    return {name: stored(name) for name in ("SimCLR", "ConVIRT", "DALLE", "Distillation")}


def leaves(node, path=()):
    """The path of every value that is no mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(content, path, value):
    content = copy.deepcopy({k: v for k, v in content.items() if k != "model"}) | {
        "model": content["model"]
    }
    *way, last = path
    node = content
    for key in way:
        node = node.setdefault(key, {})
    node[last] = value
    return content


@pytest.mark.parametrize("name", ["ConVIRT", "DALLE", "Distillation"])
def test_no_value_of_a_stored_config_is_opened(name, contents, tmp_path, bait, quiet):
    """Every value in turn names a file that exists."""
    count = 0
    for path in leaves(contents[name]["config"]):
        if path[0] in ("trainor", "ensemblor", "validator", "audit"):
            continue  # are not read; one key of each stands for them below
        content, count = changed(contents[name], ("config", *path), str(bait)), count + 1
        try:
            described(content, tmp_path / "x.pth")
        except UserError as error:
            assert "\n" not in str(error)
    assert count > 40


ATTACKS = [
    ("SimCLR", "model.cnn.options", {"checkpoint_path": BAIT}),
    ("SimCLR", "model.cnn.options", {"pretrained_cfg": {"file": BAIT}}),
    ("SimCLR", "model.cnn.options", {"pretrained_cfg_overlay": {"file": BAIT}}),
    ("SimCLR", "model.cnn.options", {"cache_dir": BAIT}),
    ("SimCLR", "model.cnn.options", {"features_only": True}),
    ("SimCLR", "model.cnn.options", {"scriptable": True}),
    ("SimCLR", "model.cnn.options", {"norm_layer": f"./{BAIT}"}),
    ("SimCLR", "model.cnn.options", {"norm_layer": {"file": BAIT}}),
    ("SimCLR", "model.cnn.options", {"weight_init": [[[["deep"]]]]}),
    ("SimCLR", "model.cnn.backbone", f"hf-hub:{BAIT}/x"),
    ("SimCLR", "model.cnn.backbone", f"hf_hub:{BAIT}/x"),
    ("SimCLR", "model.cnn.backbone", f"local-dir:{BAIT}"),
    ("SimCLR", "model.cnn.backbone", f"resnet18.x/{BAIT}"),
    ("SimCLR", "model.cnn.backbone", f"resnet18.{BAIT}"),
    ("SimCLR", "model.proto", BAIT),
    ("SimCLR", "model.proto", "ImageFolder"),
    ("SimCLR", "model.proto", "save_representation"),
    ("SimCLR", "model.cnn.proto", BAIT),
    ("SimCLR", "model.encoder", {"proto": BAIT}),
    ("SimCLR", "dataset", {}),
    ("SimCLR", "dataset", [BAIT]),
    ("SimCLR", "model", [BAIT]),
    ("Distillation", "model.teacher", BAIT),
    ("Distillation", "model.teacher.cnn.options", {"checkpoint_path": BAIT}),
    ("ConVIRT", "model.encoder.config", None),
    ("ConVIRT", "model.encoder.config", {}),
    ("ConVIRT", "model.encoder", {"proto": BAIT}),
    ("ConVIRT", "model.encoder.config", {"model_type": BAIT}),
    (
        "ConVIRT",
        "model.encoder.config",
        {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": BAIT}},
    ),
    ("ConVIRT", "model.encoder.config", {"model_type": "bert", "hidden_act": f"a/{BAIT}"}),
    ("ConVIRT", "model.encoder.config", {"model_type": "bert", "hidden_size": "wide"}),
    ("ConVIRT", "dataset.text.processing", BAIT),
]


@pytest.mark.parametrize(("name", "key", "value"), ATTACKS)
def test_a_hostile_config_is_refused_in_one_sentence(name, key, value, contents, tmp_path, quiet):
    content = changed(contents[name], ("config", *key.split(".")), value)
    with pytest.raises(UserError) as refused:
        checkpoint.write(content, tmp_path / "x.pth")
        AutoModel.from_pretrained(tmp_path / "x.pth")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), f"../{BAIT}"),
        (("tokenizer",), BAIT),
        (("tokenizer", "json"), "{}"),
        (("tokenizer", "special"), {"tokenizer_file": 3}),
        (("label_names",), BAIT),
        (("label_names",), [1]),
        (("trained_on",), [1]),
        (("trained_on",), torch.zeros(2, 2)),
        (("labels_of",), torch.zeros(2)),
        (("progress",), [3]),
        (("progress", "path"), BAIT),
        (("progress", "scores"), BAIT),
        (("format",), None),
        (("format",), BAIT),
        (("ema",), {"a": 1}),
        (("config",), None),
        (("config", "model", "proto"), 3),
        (("config", "model", "encoder"), BAIT),
        (("config", "model", "cnn"), [BAIT]),
    ],
)
def test_entries_of_another_kind_are_refused(path, value, contents, tmp_path, quiet):
    file = tmp_path / "x.pth"
    checkpoint.write(changed(contents["ConVIRT"], path, value), file)
    with pytest.raises(UserError) as refused:
        AutoModel.from_pretrained(file)
    assert "\n" not in str(refused.value)


def test_no_entry_of_another_kind_ends_training_or_scoring_in_a_traceback(tiny, tmp_path, capfd):
    """Those that pass as of the right kind are used."""
    words = [*tiny(), "audit=null", "validator.metrics=[]", "dataset.filter={view: [PA]}"]
    folder = train(load_config(CONFIG, words))
    content = checkpoint.read(folder / "last_0.pth")
    places = [(entry,) for entry in (*checkpoint.OF_A_RUN, "probe", "labels_of")]
    places += [("config", section) for section in ("trainor", "validator", "dataset")]
    file = tmp_path / "x.pth"
    scoring = ["ensemblor.post_processing=[]", "ensemblor.splits=[test]"]
    codes = []
    for place in places:
        for value in (None, [3], {"x": [3]}):
            checkpoint.write(changed(content, place, value), file)
            try:
                checkpoint.read_run(file, whole=True)
            except UserError:
                codes.append(2)
                continue
            more = [f"ckpt={file}", "overwrite=true"]
            codes.append(main(["train", str(CONFIG), *words, *more]))  # no step is left
            if value is None:
                codes.append(main(["ensemble", str(CONFIG), *words, *more, *scoring]))
    assert set(codes) == {0, 2} and codes.count(2) > 20, capfd.readouterr().err


def test_what_needs_no_refusal_is_not_looked_at(contents, tmp_path, quiet):
    """Keys that could name a place, in a checkpoint that is otherwise whole: it loads all the same,
    by itself, as the start of a training, as teacher and as VAE.
    """
    config = {"plugins": [BAIT], "includes": [BAIT], "init_from": BAIT, "ckpt": BAIT}
    config |= {"split_file": BAIT, "ckpt_dir": BAIT, "budget": {"ids": BAIT}}
    for name, keys in (
        ("ConVIRT", {"encoder": {"proto": BAIT, "pretrained": True}, "cnn": {"pretrained": True}}),
        ("DALLE", {"vae": {"ckpt": BAIT}}),
        ("Distillation", {"teacher": {"cnn": {"pretrained": True}}}),
    ):
        content = contents[name]
        for key, value in config.items():
            content = changed(content, ("config", key), value)
        for part, inner in keys.items():
            for key, value in inner.items():
                if isinstance(value, Mapping):
                    for last, deep in value.items():
                        content = changed(content, ("config", "model", part, key, last), deep)
                else:
                    content = changed(content, ("config", "model", part, key), value)
        content = changed(content, ("config", "dataset", "manifest"), BAIT)
        if content["tokenizer"]:
            content["tokenizer"]["special"] |= {"tokenizer_file": BAIT, "auto_map": BAIT}
        if name == "ConVIRT":
            text = content["config"]["model"]["encoder"]["config"]
            text |= {"auto_map": {"AutoModel": f"{BAIT}/x--y.Z"}, "_name_or_path": BAIT}
            text |= {"_attn_implementation": f"{BAIT}/kernel", "quantization_config": {"a": BAIT}}
            text |= {"attn_implementation": f"{BAIT}/kernel"}
        file = tmp_path / f"{name}.pth"
        checkpoint.write(content, file)
        model, _ = AutoModel.from_pretrained(file)
        start_from(model, file)
        assert all(torch.equal(v, content["model"][k]) for k, v in model.state_dict().items())
        if content["tokenizer"]:
            assert len(restore(tokenizer_in(file))) > 100
        if name == "DALLE":
            assert read_vae(file, where="model.vae.ckpt").told["num_tokens"] == 12
        if name == "Distillation":
            keys = _classifier(content["config"]["model"], file)
            assert build(keys, where="model").classes == 3


def test_explain_asks_the_user_where_images_lie(contents, tmp_path, capsys, quiet):
    """Not the checkpoint, which may name any place."""
    content = contents["SimCLR"]
    for key in ("plugins", "split_file"):
        content = changed(content, ("config", key), [BAIT] if key == "plugins" else BAIT)
    content = changed(content, ("config", "dataset", "manifest"), str(tmp_path / BAIT))
    checkpoint.write(content, tmp_path / "x.pth")
    words = ["explain", "film.png", "--weights", str(tmp_path / "x.pth")]
    words += ["--out", str(tmp_path / "e.png")]
    assert main(words) == 2
    assert f"--data {tmp_path / 'config_0.yml'}" in capsys.readouterr().err
    hostile = changed(content, ("config", "model", "cnn", "options"), {"checkpoint_path": BAIT})
    checkpoint.write(hostile, tmp_path / "x.pth")
    assert main(words) == 2
    assert "cnn.options.checkpoint_path" in capsys.readouterr().err


def test_an_own_yaml_hears_what_to_write_instead():
    with pytest.raises(ConfigError, match="write init_from=FILE"):
        VisualEncoder(backbone="test_resnet", options={"checkpoint_path": "weights.pth"})
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        refuse_options({"depht": 3})
    with pytest.raises(ConfigError, match=r"cnn\.options\.img_size: 'a/b'; write a number"):
        refuse_options({"img_size": "a/b"})
    refuse_options(
        {"img_size": [32, 48], "depths": ((1, 2), (3,)), "global_pool": "", "depth": None}
    )


def test_options_hold_nothing_that_timm_takes_for_itself():
    """Names of arguments of timm.create_model and of what builds a model from a config."""
    import inspect

    import timm
    from timm.models import build_model_with_cfg, load_pretrained

    for maker in (timm.create_model, build_model_with_cfg, load_pretrained):
        assert not OPTIONS & set(inspect.signature(maker).parameters)
    assert not OPTIONS & {"pruned", "features_only", "feature_cls", "url", "file", "hf_hub_id"}


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "deberta-v2", "distilbert"])
def test_text_encoders_survive_as_plain_data(kind):
    from transformers import AutoConfig

    assert kind in TEXT_TYPES
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 99}
    made = text_config(AutoConfig.for_model(kind, **sizes).to_diff_dict())
    assert made.to_dict() == text_config(made.to_diff_dict()).to_dict()
    assert made.hidden_size == 32 and made.vocab_size == 99


def test_a_folder_of_a_wrapped_network_is_no_text_encoder(tmp_path, quiet):
    folder = save_bert(tmp_path / "bert")
    text = (folder / "config.json").read_text()
    for kind in ("timm_wrapper", "vit", "detr"):
        (folder / "config.json").write_text(text.replace('"bert"', f'"{kind}"'))
        with pytest.raises(ConfigError, match="encoder"):
            TextEncoder(proto=str(folder))
