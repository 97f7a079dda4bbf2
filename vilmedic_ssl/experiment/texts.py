"""The reports of an experiment: who reads them, with which tokenizer, and what equal ones cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.registry import find

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset
    from vilmedic_ssl.data.texts import Texts, TextSettings

FLIP = "HorizontalFlip"
FEW, MANY = 0.02, 0.2  # shares of silent reports, of unknown tokens, from which one is warned
MIRROR = {"seq": "dataset.seq.mirror", "text": "dataset.text.mirror"}


def reads_reports(node: Mapping[str, Any]) -> bool:
    """True when the model of a config learns from reports."""
    return "input_ids" in getattr(find(node["model"]["proto"]), "takes", ())


def texts_for(node: Mapping[str, Any], content: Mapping[str, Any] | None = None) -> Texts | None:
    """What reads the reports for the model of a checked config; None when it looks at images alone.

    Args:
        content: of the checkpoint whose model is used; its tokenizer comes with it.
    """
    from vilmedic_ssl.data.texts import Texts, settings_of
    from vilmedic_ssl.data.tokenizers import restore

    if not reads_reports(node):
        return None
    texts = Texts(settings_of(node["dataset"]))
    if content is not None:
        if not content.get("tokenizer"):
            raise UserError(
                f"this checkpoint is of {content['config']['model']['proto']}, which reads no "
                f"reports, and the config says {node['model']['proto']}; give the config that lies "
                "beside the checkpoint"
            )
        texts.tokenizer = restore(content["tokenizer"])
        _warn_of_another_reading(texts.settings, settings_of(content["config"]["dataset"]))
    return texts


def _warn_of_another_reading(now: TextSettings, then: TextSettings) -> None:
    """Say so when a model is to read reports in another way than it was trained to."""
    names = ("processing", "language", "sections", "drop_priors", "tokenizer_max_len")
    for name in names:
        asked, known = getattr(now, name), getattr(then, name)
        if asked != known and (name != "sections" or list(asked) != list(known)):
            console.warn_once(
                f"reports are read with {name} {asked} here and were with {known} in training; the "
                "config beside the checkpoint has what it was trained with"
            )


def take_text(node: dict[str, Any], content: Mapping[str, Any], texts: Texts | None) -> None:
    """The text encoder is that of a checkpoint, wherever its weights once came from."""
    if texts is None:
        return
    if "encoder" not in node["model"]:
        _settle(node["model"], texts, [])
        return
    then = content["config"]["model"].get("encoder")
    if not isinstance(then, Mapping) or not isinstance(then.get("config"), Mapping):
        raise UserError(
            "this checkpoint does not hold the architecture of its text encoder "
            "(model.encoder.config); take one that training wrote"
        )
    node["model"]["encoder"]["config"] = dict(then["config"])
    _limit(texts, node["model"]["encoder"]["config"])


def pin_text(node: dict[str, Any], texts: Texts, said: Sequence[str]) -> None:
    """Give a new training its tokenizer, and write the text encoder's architecture into its config.

    Args:
        said: the training reports, as the model reads them.

    Raises:
        ConfigError: the tokenizer has ids that the encoder does not know.
        UserError: no such tokenizer or encoder.
    """
    from vilmedic_ssl.data.tokenizers import load_tokenizer, restore, train_tokenizer
    from vilmedic_ssl.executors.init_weights_read import tokenizer_in
    from vilmedic_ssl.nets.text import architecture

    encoder, settings = node["model"].get("encoder"), texts.settings
    source = settings.tokenizer or (encoder and encoder["proto"])
    kept = tokenizer_in(node["init_from"], node["seed"]) if node["init_from"] else None
    told = source or "trained on the training reports"
    if source is not None:
        if encoder is not None:
            architecture(encoder)  # refuses a folder that is not there by its own key
        texts.tokenizer = load_tokenizer(source)
    elif kept is not None:
        texts.tokenizer, told = restore(kept), f"that of {node['init_from']}"
    else:
        texts.tokenizer = train_tokenizer(said, settings.vocab_size)
    found = len(texts.tokenizer)
    console.say(f"tokenizer: {told}, {found:,} entries")
    if encoder is None:
        _settle(node["model"], texts, said)
        return
    encoder["config"] = architecture(encoder, vocab_size=found)
    known = encoder["config"].get("vocab_size")
    if known is not None and found > known:
        raise ConfigError(
            f"the tokenizer has {found} entries, the text encoder knows {known}; take the tokenizer"
            " of its own folder, or leave tokenizer out"
            if encoder["proto"]
            else f"model.encoder.vocab_size: {known}, but the tokenizer has {found} entries; leave "
            "the key out"
        )
    _limit(texts, encoder["config"])


def _settle(model: dict[str, Any], texts: Texts, said: Sequence[str]) -> None:
    """A model without a text encoder of its own is asked what it makes of the tokenizer."""
    most = texts.settings.tokenizer_max_len
    made: Any = find(model["proto"], folder="models")
    texts.limit = made.settle_text(model, texts.tokenizer, said, most)


def _limit(texts: Texts, config: Mapping[str, Any]) -> None:
    """No text longer than the encoder has positions for."""
    from vilmedic_ssl.nets.architecture import text_config

    made = text_config(config)
    kind = made.model_type
    positions = getattr(made, "max_position_embeddings", None)
    if positions is None:
        return
    if kind in ("roberta", "xlm-roberta", "camembert", "longformer"):
        positions -= made.pad_token_id + 1  # theirs begin behind the padding id
    asked = texts.settings.tokenizer_max_len
    if asked is not None and asked > positions:
        raise ConfigError(
            f"dataset: tokenizer_max_len {asked}, but the text encoder takes {positions} tokens; "
            f"write {positions} or less"
        )
    texts.limit = asked or positions


def spoken(dataset: MedicalDataset, model: str, *, train: bool) -> MedicalDataset:
    """The samples of a split whose report says something; all of them where none does and the
    split is only scored.

    Raises:
        UserError: none does, or the data has no reports.
    """
    from vilmedic_ssl.data.datasets.part import Part

    if dataset.said is None:
        raise UserError(
            f"model: {model} reads reports, and this data has none; they come from a column "
            "'report' (dataset.proto=Manifest) or a file (dataset.proto=ImSeq)"
        )
    rows = [i for i, text in enumerate(dataset.said) if text]
    if len(rows) == len(dataset):
        return dataset
    if not rows and not train:
        console.warn_once(
            f"{dataset.split}: no image has a report; only what images and labels score says "
            "anything"
        )
        return dataset
    if not rows:
        raise UserError(
            f"split {dataset.split!r}: no report has anything left to read; look at processing and "
            "sections of the text settings"
        )
    console.warn_once(
        f"{dataset.split}: {len(dataset) - len(rows):,} of {len(dataset):,} images have no report "
        "to read (blank, or without the sections asked for) and are left out"
    )
    return Part(dataset, rows)


def settle_flips(node: dict[str, Any]) -> None:
    """Mirror images contradict reports that name a side: presets lose their flip, which is said,
    and a flip that is written out is refused.

    Raises:
        ConfigError: the config asks for one.
    """
    from vilmedic_ssl.data.presets import preset, sides

    home = node["dataset"]
    block = next((key for key in MIRROR if isinstance(home.get(key), Mapping)), "text")
    owner = next((home[k] for k in ("image", "transform") if isinstance(home.get(k), dict)), home)
    train = "custom_transform_train" if "custom_transform_train" in owner else "train"
    for key in (train, "second", "local"):
        value, named = owner.get(key), None
        if key == train and value is None:
            size = sides(owner["crop"]) if not isinstance(owner["crop"], str) else owner["crop"]
            owner[key] = [{"RandomCrop": {"size": size, "pad_if_needed": True}}]
            named = "the usual crop"
        elif isinstance(value, str) and "Compose" not in value:
            items = preset(value, owner["local_crop" if key == "local" else "crop"])
            owner[key] = [item for item in items if FLIP not in json.dumps(item)]
            named = f"preset {value}" if len(owner[key]) < len(items) else None
        elif value is not None and FLIP in json.dumps(value):
            raise ConfigError(
                f"dataset: {key} mirrors images, whose reports name sides; take the horizontal "
                f"flip out, or write {MIRROR[block]}=0.5, which also exchanges left and right in "
                "the text"
            )
        if named:
            console.say(
                f"{key}: {named} without its horizontal flip, because reports name sides; "
                f"{MIRROR[block]}=0.5 mirrors image and text together"
            )


def refuse_unread(dataset: MedicalDataset, most: int = 2000) -> None:
    """Reports of which the tokenizer knows nothing teach nothing.

    Args:
        most: evenly spaced reports that are looked at.

    Raises:
        UserError: no report has a token that the tokenizer knows.
    """
    said = [text for text in dataset.said or [] if text]
    if dataset.texts is None or dataset.texts.tokenizer is None or not said:
        return
    said = said[:: -(-len(said) // most)]
    counts = dataset.texts.known_tokens(said)
    silent = sum(not known for known, _ in counts)
    unknown = 1 - sum(known for known, _ in counts) / max(1, sum(n for _, n in counts))
    remedy = (
        "leave tokenizer out to have one trained on the training reports, or take one for their "
        "language and spelling"
    )
    if silent == len(said):
        raise UserError(
            f"split {dataset.split!r}: the tokenizer knows no token of any report (empty or "
            f"unknown, for example {said[0][:40]!r}), so there is nothing to read; {remedy}"
        )
    if silent > FEW * len(said) or unknown > MANY:
        console.warn(
            f"{dataset.split}: {silent:,} of {len(said):,} reports that were looked at have no "
            f"token that the tokenizer knows, and it does not know {unknown:.0%} of all tokens; "
            f"{remedy}"
        )


def tell_floor(train: MedicalDataset, batch_size: int, loss: Any, draws: int = 20) -> None:
    """Say how many training reports are alike, and what that costs a loss at this batch size."""
    import numpy as np
    import torch

    from vilmedic_ssl.data.texts import group_names

    said = train.said or []
    if train.texts is not None:
        said = [train.texts.draw(text, i)[0] for i, text in enumerate(said)]
    unknown = [None] * len(said)
    columns = zip(said, train.studies or unknown, train.patients or unknown, train.ids, strict=True)
    named_3N = zip(*(group_names(*row) for row in columns), strict=True)
    groups = [np.unique(names, return_inverse=True)[1] for names in named_3N]
    groups_N3 = torch.from_numpy(np.stack(groups, axis=1))
    count_U = np.bincount(groups[0])
    mixed, size = np.random.default_rng(0), min(batch_size, len(said))
    found: dict[str, list[float]] = {"chance": [], "floor": []}
    for _ in range(draws):
        some = groups_N3[mixed.choice(len(said), size, replace=False)]
        for name, value_N in loss.references(some, some).items():
            found[name].append(float(value_N.mean()))
    chance, floor = (float(np.mean(found[name])) for name in ("chance", "floor"))
    shared = count_U[count_U > 1].sum() / len(said)
    console.say(
        f"reports: {len(count_U):,} different ones, {shared:.1%} of the images share theirs with "
        f"another; in batches of {size} the loss of a model that knows nothing is {chance:.2f}, "
        f"and equal reports keep it above {floor:.2f} (duplicates: {loss.duplicates})"
    )
