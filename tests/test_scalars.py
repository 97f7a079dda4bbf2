"""What a user typed arrives whole where text is documented, as the right number elsewhere, or is
refused; what is written can be read again.
"""

import json
import math
import shlex

import pytest
import yaml
from conftest import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st

from vilmedic_ssl import config, console, scalars
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.sweep_space import words_of
from vilmedic_ssl.experiment import load_config
from vilmedic_ssl.experiment.sweep_verb import plan_of
from vilmedic_ssl.post_processing._prompts import read_prompts
from vilmedic_ssl.schema import plain
from vilmedic_ssl.settle import settle

# What YAML 1.1 makes something else of.
WORDS = [
    *("no", "yes", "on", "Off", "TRUE", "False", "y", "n", "None", "nan", "inf", ".inf", ".NaN"),
    *("007", "0123", "0o17", "0x10", "0b101", "1_000", "1e5", "1e-3", "1.e3", "1.0", ".5", "5."),
    *("+1", "-1", "695e0514", "1e-400", "12:30", "1:30:00", "2020-01-01", "2001-12-14t21:59:43Z"),
    *("=", "<<", "a=b=c", "C:\\data\\new", "é肺", "it's", "a#b", "a:b", "-x", "~/x", "$HOME"),
]
# What it cannot have in a list without quotes, or drops there.
PHRASES = [
    *("imgs #2", "#2", " # ", "a: b", "- a", "-", "? a", "*a", "&a b", "!tag", "!!int 3", "%x"),
    *("@x", "`x", "| a", "> a", "[a-z]+_", "[a-z]", "{x}", "{x", "'a", '"a" b', "(\\d+) #", ","),
    *(" lead", "trail ", "a  b", "tab\there", "two\nlines", "nel\x85x", "ls\u2028x", "a\rb"),
    *("\ufeffbom", "caf\udce9", "a, b", "x: [1]", "]", "}", "a:", "\u00a0"),
]
TEXT = "dataset.patient_pattern"
FOLDER = ["dataset.root=imgs", "name=x"]
FILE = "config/SELFSUP/simclr-folder.yml"


def value_of(overrides, path, file=FILE):
    node = plain(load_config(file, [*FOLDER, *overrides]))
    for key in path.split("."):
        node = node[key]
    return node


@pytest.mark.parametrize("word", [*WORDS, *PHRASES])
def test_text_on_the_command_line_arrives_whole(word):
    assert value_of([f"{TEXT}={word}"], TEXT) == word  # may also be null
    assert value_of([f"dataset.root={word}"], "dataset.root") == word  # text and nothing else


@pytest.mark.parametrize("word", WORDS)
def test_text_in_lists_keys_files_and_sweeps_arrives_whole(word, tmp_path):
    listed = f"[{word}, x, {word}2]"
    assert value_of([f"dataset.classes={listed}"], "dataset.classes") == [word, "x", f"{word}2"]
    path = tmp_path / "file.yml"
    key = "'<<'" if word == "<<" else word  # it has its meaning among keys, and only there
    path.write_text(
        f"includes: [{FILE}]\nbudget: {{keep: {{{key}: 0.5}}}}\n"
        f"dataset: {{root: {word}, classes: {listed}}}\n",
        encoding="utf-8",
    )
    loaded = load_config(path, ["name=x"])
    assert dict(loaded.budget.keep) == {word: 0.5}
    assert loaded.dataset.root == word and list(loaded.dataset.classes) == [word, "x", f"{word}2"]
    again = tmp_path / "again.yml"
    again.write_text(config.dump(plain(loaded)), encoding="utf-8")
    assert plain(load_config(again)) == plain(loaded)


@pytest.mark.parametrize("word", ["imgs #2", "[a #b]", "no", "1e5", "a: b"])
def test_sweeps_vary_what_was_typed(word, tmp_path):
    quoted = json.dumps(word) if word[0] in "[ai" else word
    words = [*FOLDER, f"ckpt_dir={tmp_path}", f"dataset.patient_pattern={word}"]
    space = (
        f"space={{dataset.root: {{choices: [{quoted}, x]}}, "
        f"dataset.classes: {{choices: {{a: [{quoted}], b: null}}}}}}"
    )
    plan = plan_of(FILE, [*words, "sweep.sampler=grid", space])
    axes = plan.settings.space
    assert axes["dataset.root"].choices == [word, "x"]
    assert axes["dataset.classes"].choices == {"a": [word], "b": None}
    chosen = {"dataset.root": word, "dataset.classes": [word]}
    trial = plan.config(chosen)["dataset"]
    assert trial["root"] == trial["patient_pattern"] == word and trial["classes"] == [word]
    printed = shlex.split(plan.command(chosen))  # the remedy can be pasted
    assert printed[:2] == ["vilmedic-ssl", "train"]
    pasted = load_config(printed[2], printed[3:])
    assert pasted.dataset.root == word and pasted.dataset.classes == [word]


def test_sweeps_vary_text_below_a_key_of_text(tmp_path):
    space = (
        "space={dataset.filter: {choices: {a: {view: [on, 007]}, b: {view: 1e5}}}, "
        "dataset.filter.view: {choices: [PA, no, [1_0]]}}"
    )
    words = [f"ckpt_dir={tmp_path}", "sweep.sampler=grid", "sweep.metric=validation_loss", space]
    axes = plan_of("config/SELFSUP/simclr-phantom.yml", words).settings.space
    assert axes["dataset.filter"].choices == {"a": {"view": ["on", "007"]}, "b": {"view": "1e5"}}
    assert axes["dataset.filter.view"].choices == ["PA", "no", ["1_0"]]


def test_stages_of_a_flow_get_text(tmp_path):
    path = "config/FLOW/simclrv2-folder.yml"
    stage = next(iter(config.load(path)["flow"]["stages"]))
    own = f"flow.stages.{stage}.dataset"
    words = [f"{own}.classes=[no, 007]", f"{own}.patient_pattern=(\\d+) #", "dataset.root=on"]
    loaded = plain(load_config(path, ["name=x", *words]))
    assert loaded["dataset"]["root"] == "on"
    assert loaded["flow"]["stages"][stage]["dataset"]["classes"] == ["no", "007"]
    assert loaded["flow"]["stages"][stage]["dataset"]["patient_pattern"] == "(\\d+) #"
    (tmp_path / "flow.yml").write_text(config.dump(loaded), encoding="utf-8")
    assert plain(load_config(tmp_path / "flow.yml")) == loaded


def test_words_that_are_compared_as_text_are_text(tmp_path):
    words = ["dataset.manifest=a.csv", "dataset.filter={age: [010, 7], side: no}"]
    loaded = load_config("config/SELFSUP/vae-manifest.yml", [*words, "name=x"])
    assert plain(loaded.dataset.filter) == {"age": ["010", "7"], "side": "no"}
    (tmp_path / "prompts.yml").write_text("labels: {No: [no, on], 1: 007}\n")
    assert read_prompts(str(tmp_path / "prompts.yml"), "zero_shot").positive == {
        "No": ["no", "on"],
        "1": ["007"],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainor.epochs=3 #4", "expected an integer, found '3 #4'"),
        ("trainor.epochs=010", "expected an integer, found '010'"),
        ("trainor.epochs=1:30", "expected an integer, found '1:30'"),
        ("trainor.clip_grad_norm=1e-400", "expected a number, found '1e-400'"),
        ("trainor.clip_grad_norm=1,5", "expected a number, found '1,5'"),
        ("dataset.root=null", "dataset.root: expected text, found None; put quotes around it"),
        ("dataset.root=", "dataset.root: expected text, found None; put quotes around it"),
        ("dataset.classes=[a #b]", "dataset.classes: '[a #b]' is not readable YAML"),
        ("dataset.classes=[a, b] # c", "dataset.classes: '[a, b] # c' is not readable YAML"),
        ("dataset.classes=[a: b]", "expected text, found {'a': 'b'}"),
        ("dataset.classes=[a\u2028b]", "U+2028"),
        ("dataset.classes=[*a]", "dataset.classes=['*a*', '*b*']"),
        ("dataset.exclude=*a*", "put square brackets around it"),
        ("trainor=epochs: 3", "put braces around it"),
        ("budget={keep: {a: 0.5, a: 0.6}}", "duplicate key a"),
    ],
)
def test_what_has_no_such_meaning_is_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        load_config(FILE, [*FOLDER, text])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_mapping_of_text_is_refused_by_its_key_with_an_example_of_its_kind():
    with pytest.raises(ConfigError, match=r"^dataset\.filter: .*\"dataset\.filter={a: 'x y'}\"$"):
        load_config("config/SELFSUP/simclr-phantom.yml", ["dataset.filter={view: PA #x}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("1.e-3", 0.001), (".5", 0.5), ("5.", 5.0), ("1_000", 1000)),
        *(("0x10", 16), ("+3", 3), ("-0.0", -0.0), (".inf", math.inf), ("1E3", 1000.0)),
        *(("yes", True), ("Off", False), ("~", None), ("", None), (" 7 ", 7)),
    ],
)
def test_numbers_and_switches_are_what_they_look_like(text, value):
    found = settle(scalars.read_value(text), object)
    assert found == value and type(found) is type(value)


def test_a_key_with_spaces_around_its_sign():
    assert value_of(["trainor.ema = 0.9"], "trainor.ema") == 0.9
    assert value_of([f"{TEXT} = (a) "], TEXT) == "(a)"


def test_quotes_are_those_of_yaml():
    assert value_of([f"{TEXT}='my #2'"], TEXT) == "my #2"
    assert value_of([f'{TEXT}="\\u2028"'], TEXT) == "\u2028"
    assert value_of([f"{TEXT}='null'"], TEXT) == "null"
    with pytest.raises(ConfigError, match="expected an integer, found '3'"):
        load_config(FILE, [*FOLDER, "seed='3'"])


def test_merge_keys_lie_below_the_others(tmp_path):
    path = tmp_path / "file.yml"
    path.write_text("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}\n")
    assert config.load(path)["c"] == {"x": 1, "y": 1, "z": 3}
    for text in ("a: {<<: 3}", "? [a]\n: b", "a: !!int '3'", "a: &a {b: *a}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="readable YAML"):
            config.load(path)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([*WORDS, *PHRASES]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(ANYTHING)
def test_what_is_written_is_read_as_the_same(value):
    (word,) = words_of({"key": value})
    keys, read = config.parse_override(word) if "${" not in word else (["key"], value)
    assert keys == ["key"] and scalars.plain(read) == value
    document = scalars.write_document({"key": value})
    assert scalars.plain(scalars.read_document(document)) == {"key": value}
    assert yaml.safe_load(document) == {"key": value}  # to other readers too


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text("[]{}'\"#:, \n\t~!&*-ab0.1e", max_size=12))
def test_any_text_arrives_whole(text):
    if "${" in text:
        return
    found = settle(config.parse_override(f"key={text}")[1], str)
    if text.strip(scalars.BLANKS) in scalars.NULLS:
        assert found is None
    elif text.strip(scalars.BLANKS)[0] in "'\"" and found != text:
        assert found == yaml.safe_load(text.strip(scalars.BLANKS))  # in quotes of its own
    else:
        assert found == text


# ---- another proto -------------------------------------------------------------------------------


def blocks(node, folder):
    """A file, one that includes it with `node`, and the words that say the same."""
    file = folder / "includes.yml"
    file.write_text(config.dump({"includes": [FILE], **node}), encoding="utf-8")
    yield file, []
    yield FILE, [f"{key}={scalars.write_value(value)}" for key, value in node.items()]


CLASSIFIER = {"model": {"proto": "Classifier", "cnn": {"backbone": "resnet18"}}}
TABLE = {"dataset": {"proto": "Manifest", "manifest": "a.csv", "label": "x"}}


@pytest.mark.parametrize("node", [CLASSIFIER, TABLE, {**CLASSIFIER, **TABLE}])
def test_a_block_of_another_proto_replaces(node, tmp_path):
    for file, words in blocks(node, tmp_path):
        place = [] if "dataset" in node else FOLDER[:1]
        loaded = plain(load_config(file, [*words, *place, "name=x"]))
        for name, block in node.items():
            alone = {**TABLE, **CLASSIFIER, name: block, "name": "x"}
            (tmp_path / "alone.yml").write_text(config.dump(alone))
            assert loaded[name] == plain(load_config(tmp_path / "alone.yml"))[name]


def test_a_block_of_the_same_proto_is_laid_over(tmp_path):
    node = {"model": {"proto": "SimCLR", "cnn": {"proto": "CNN", "width": 1}}}
    for file, words in blocks(node, tmp_path):
        loaded = load_config(file, [*words, *FOLDER])
        assert loaded.model.cnn.backbone == "resnet18"
        assert loaded.model.loss == load_config(FILE, FOLDER).model.loss
    loaded = load_config(FILE, ["dataset={root: a, classes: [b]}", "name=x"])
    assert loaded.dataset.transform.crop == 64 and loaded.dataset.root == "a"


def test_blocks_without_a_proto_have_that_of_their_default():
    """`loss: {duplicates: ...}` below CLIP is CLIP's loss, below ConVIRT its own."""
    file = CONFIG.with_name("clip-phantom.yml")
    loss = "model.loss={proto: ConVIRTLoss, tau: 0.2}"
    assert load_config(file, [loss]).model.loss.duplicates == "ignore"
    file = CONFIG.with_name("convirt-manifest.yml")
    words = ["dataset.manifest=a.csv", "name=x"]
    assert load_config(file, [loss, *words]).model.loss.duplicates == "positives"
    # a `proto` that is a path names no class
    encoder = load_config(file, ["model.encoder={proto: data/minilm}", *words]).model.encoder
    assert encoder.proto == "data/minilm" and encoder.pool == "mean"


def test_stages_and_sweeps_replace_too(tmp_path):
    path = "config/FLOW/simclrv2-folder.yml"
    words = ["dataset.root=a", "name=x", "flow.stages.pretrain.dataset={proto: Manifest}"]
    with pytest.raises(ConfigError, match=r"flow.stages.pretrain: .*manifest: this key is req"):
        load_config(path, words)
    words[-1] = "flow.stages.pretrain.dataset={proto: Manifest, manifest: a.csv}"
    load_config(path, words)
    space = "space={model: {choices: {a: {proto: SimSiam, cnn: {backbone: resnet18}}}}}"
    plan = plan_of(FILE, [*FOLDER, "sweep.sampler=grid", f"ckpt_dir={tmp_path}", space])
    chosen = plan.settings.space["model"].choices["a"]
    assert plan.config({"model": chosen})["model"]["proto"] == "SimSiam"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset.rot=x"], "dataset.rot: there is no such key; did you mean 'root'"),
        (["dataset={proto: Manifest, manifets: a.csv}"], "did you mean 'manifest'"),
        (["datset.root=x"], "datset: there is no such key; did you mean 'dataset'"),
        (["dataset.root=x", "trainor={optim_parms: {lr: 1}}"], "did you mean 'optim_params'"),
        (["dataset.root=x", "model={proto: VAE, imagesize: 3}"], "did you mean 'image_size'"),
    ],
)
def test_a_misspelt_required_key_is_named(words, told):
    with pytest.raises(UserError) as caught:
        load_config(FILE, [*words, "name=x"])
    assert told in str(caught.value)


def test_keys_that_fall_with_a_proto_are_named_once(capfd, monkeypatch):
    monkeypatch.setattr(console, "_told", set())
    words = ["dataset={proto: Manifest, manifest: x.csv}", "model.cnn.backbone=resnet18"]
    for _ in range(2):
        config.load(FILE, words)
    (sentence,) = [line for line in capfd.readouterr().err.splitlines() if "another proto" in line]
    assert sentence.startswith("dataset: ") and "transform" in sentence
    config.load(FILE, ["dataset={proto: ImageFolder, root: x}"])
    assert "another proto" not in capfd.readouterr().err
