"""A model of ViLMedic's zoo: a folder with one .pth, `config.yml`, and the vocabulary where it had
one of its own. ConVIRT, GLoRIA, SimCLR, VAE and DALLE of releases 1.0.8 to 1.3; with such a config
also the .ckpt of GLoRIA's own release.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.config import read_yaml
from vilmedic_ssl.data.datasets.tok import ImageDataset
from vilmedic_ssl.data.legacy_keys import modern, parse_size
from vilmedic_ssl.data.presets import sides
from vilmedic_ssl.data.texts import Texts, TextSettings
from vilmedic_ssl.data.tokenizers import as_data, load_tokenizer, restore
from vilmedic_ssl.data.transforms import IMAGENET, Transform
from vilmedic_ssl.errors import ConfigError, Unobtainable, UserError
from vilmedic_ssl.executors.init_weights import UNREAD, start_from
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.schema import build

CONFIG = "config.yml"
KNOWN = ("ConVIRT", "GLoRIA", "SimCLR", "VAE", "DALLE")
FAMILIES = ("selfsup/", "rrg/", "rrs/", "mvqa/")  # of names in the zoo
# Keys of an encoder that say which part of transformers' architecture it is, not how it looks.
NO_SIZES = ("proto", "add_pooling_layer", "last_n_layers", "transformers_version", "use_cache")
LEARNED = "learned."  # of a loss here, fixed numbers there; only training reads it
SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")

Loaded = tuple[PretrainingModel, Transform, Texts | None]


def cached(name: str) -> Path | None:
    """Where ViLMedic kept a model of its zoo on this machine; None for any other name.

    Raises:
        UserError: a name of the zoo that is not here.
    """
    if not name.startswith(FAMILIES):
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "vilmedic" / "zoo" / "models" / name
    if not folder.is_dir():
        raise UserError(
            f"{name} is a name of ViLMedic's zoo, which lies on a cloud drive and is not fetched "
            f"from here; there is no {folder} either: name the folder it was saved to"
        )
    return folder


def load(folder: Path) -> Loaded:
    """Model, transform of the images, and what reads the texts where the model does.

    Raises:
        UserError: not one .pth (or .ckpt); a config without model or dataset, or of another model;
            tensors that are missing.
        Unobtainable: a tokenizer or text encoder that does not lie in the folder.
    """
    files = sorted([*folder.glob("*.pth"), *folder.glob("*.ckpt")])
    config = read_yaml(folder / CONFIG)
    model, dataset = config.get("model"), config.get("dataset")
    if len(files) != 1 or not isinstance(model, dict) or not isinstance(dataset, dict):
        raise UserError(
            f"{folder}: a model of ViLMedic is one .pth and a {CONFIG} with `model` and `dataset`; "
            f"here are {len(files)} .pth, and the config has {', '.join(map(str, config))}"
        )
    if model.get("proto") not in KNOWN:
        raise UserError(
            f"{folder / CONFIG}: the model is {model.get('proto')!r}; {', '.join(KNOWN)} are read"
        )
    try:
        reads = "encoder" in model or "dalle" in model
        texts = _texts(dataset.get("seq"), model["proto"], folder) if reads else None
        made: Any = build(_model_node(model, folder, texts), where="model")
        transform = _transform(dataset.get("image", dataset))
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error
    if texts is not None and "dalle" in model:
        texts.limit = made.dalle.text_seq_len
    elif texts is not None and texts.limit is None:  # RoBERTa keeps two positions for itself
        texts.limit = made.encoder.net.config.max_position_embeddings - 2
    start = start_from(made, files[0])
    console.say(start.describe().removeprefix("init_from "))
    missing = [n for n in start.kept if not n.endswith(UNREAD) and not n.startswith(LEARNED)]
    if missing:
        raise UserError(
            f"{files[0]} lacks {len(missing)} tensors of the model that {CONFIG} describes, for "
            f"example {', '.join(missing[:3])}; name the folder with its own config"
        )
    return made, transform, texts


def _model_node(node: Mapping[str, Any], folder: Path, texts: Texts | None) -> dict[str, Any]:
    """ViLMedic's keys of a model as ours; nothing is fetched, and the architecture of a text
    encoder is read from the folder.
    """
    if "dalle" in node:  # which there pads with a word like others
        pad = None if texts is None else texts.tokenizer.pad_token_id
        dalle = {**node["dalle"], "unique_pads": False, "pad_token_id": pad}
        vae = {key: value for key, value in node["vae"].items() if key not in ("ckpt", "proto")}
        return {"proto": node["proto"], "vae": {"channels": 3, **vae}, "dalle": dalle}
    if "cnn" not in node:
        return dict(node)
    node = {**node, "cnn": {**node["cnn"], "pretrained": False, "freeze": False}}
    if "encoder" not in node:
        return node
    given = node["encoder"]
    encoder: dict[str, Any] = {"pretrained": False}
    if "last_n_layers" in given:
        encoder["last_n_layers"] = given["last_n_layers"]
    if given.get("proto"):
        encoder["proto"] = _inside(folder, given["proto"], "model.encoder.proto")
    else:
        sizes = {k: v for k, v in given.items() if k not in NO_SIZES and v is not None}
        encoder["config"] = {"model_type": "bert", **sizes}
    return {**node, "encoder": encoder}


def _texts(node: Any, model: str, folder: Path) -> Texts:
    """What reads the texts as the model was trained: without special tokens, but for GLoRIA.

    ViLMedic gives its encoders no [CLS] and no [SEP]. GLoRIA's words are counted between them, and
    its own release has them, so there they stay.
    """
    if not isinstance(node, Mapping):
        raise ConfigError("dataset: there is no block `seq`, and the model reads texts")
    tokenizer = (
        load_tokenizer(_inside(folder, node["tokenizer"], "dataset.seq.tokenizer"))
        if node.get("tokenizer")
        else _word_tokenizer(_vocabulary(node, folder))
    )
    settings = TextSettings(
        tokenizer_max_len=node.get("tokenizer_max_len"), processing=node.get("processing") or "none"
    )
    return Texts(settings, tokenizer if model == "GLoRIA" else _plain(tokenizer))


def _transform(node: Mapping[str, Any]) -> Transform:
    """Evaluation as ViLMedic has it: colour, straight to the crop unless a text says otherwise."""
    names = ImageDataset.KEY_ALIASES
    node = {names.get(key, key): value for key, value in node.items()}
    if node.get("ext") == ".gloria_chx":
        raise ConfigError(
            "dataset.image.ext: .gloria_chx enlarges images to a padded square, which is not read "
            "here; write another ext and a custom_transform_validate"
        )
    crop = parse_size(node.get("crop", 224), "dataset.image.crop")
    mean, std = IMAGENET["rgb"]
    keys: dict[str, Any] = {"resize": sides(crop), "crop": crop, "channels": "rgb"}
    text = node.get("custom_transform_validate")
    if not text:
        return Transform(**keys, mean=mean, std=std)
    found = modern({"resize": keys["resize"], "crop": crop, "evaluate": text, "channels": "auto"})
    return Transform(**{**found, "channels": "rgb", "views": 1})


def _inside(folder: Path, name: Any, key: str) -> str:
    """A file or folder that a config names, below the folder of the zoo, by its whole path or its
    last part; no other place is looked at, since the config may be a stranger's.

    Raises:
        Unobtainable: it is not there.
    """
    words = PurePath(name).parts if isinstance(name, str) else ()
    places = [words, words[-1:]] if words else []
    for place in places:
        below = ".." not in place and not PurePath(*place).is_absolute()
        if below and folder.joinpath(*place).exists():
            return str(folder.joinpath(*place))
    last = words[-1] if words else "NAME"
    raise Unobtainable(
        f"{key}: {name!r} does not lie in {folder}, and what a config of a zoo names is looked for "
        f"nowhere else; copy it there as {folder / last} (from the hub: `hf download {name} "
        f"--local-dir {folder / last}`)"
    )


def _vocabulary(node: Mapping[str, Any], folder: Path) -> list[str]:
    """The words of `vocab_file`, one per line, the line being the number."""
    name = node.get("vocab_file") or "vocab.src"
    try:
        path = Path(_inside(folder, name, "dataset.seq.vocab_file"))
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (Unobtainable, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"dataset.seq: there is neither a tokenizer nor the vocabulary {name} as UTF-8 text "
            f"in {folder}"
        ) from error


def _word_tokenizer(words: list[str]) -> Any:
    """Words between blanks; one that is not in the list is cut into the longest pieces that are
    ("##" before all but the first), or is [UNK]: BERT's word pieces without its cleaning.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(words)}
    missing = [token for token in SPECIAL if token not in numbers]
    if missing:
        raise ConfigError(f"dataset.seq.vocab_file: it has no {missing[0]}")
    core = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [(token, numbers[token]) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=around
    )
    names = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, SPECIAL, strict=True)))


def _plain(tokenizer: Any) -> Any:
    """The tokenizer without the special tokens around a text."""
    from tokenizers import Tokenizer, processors

    data = as_data(tokenizer)
    core = Tokenizer.from_str(data["json"])
    core.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return restore({**data, "json": core.to_str()})
