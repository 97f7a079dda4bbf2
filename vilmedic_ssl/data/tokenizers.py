"""Tokenizers: a transformers folder, or a word vocabulary made from the training reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError

SPECIAL = {
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a transformers folder or the hub.

    Raises:
        UserError: neither a folder with tokenizer files nor a name the hub can be asked for here.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer: {name!r} is no folder with tokenizer files and cannot be fetched; "
            "write a local transformers folder, or null to build a vocabulary"
        ) from error


def word_tokenizer(training_lines: Callable[[], list[str]], run_dir: Path | None) -> Any:
    """A word-level tokenizer, specials first ([CLS] 0, [PAD] 1, [SEP] 2, [UNK] 3, [MASK] 4), then
    the sorted words.

    It is built from the training reports once and kept in `<run_dir>/tokenizer`, so that
    evaluation sees the same ids.
    """
    if run_dir is None:
        return _build(training_lines())
    folder = run_dir / "tokenizer"

    def make() -> None:
        if not (folder / "tokenizer.json").is_file():
            partial = folder.with_suffix(".partial")
            _build(training_lines()).save_pretrained(str(partial))
            partial.replace(folder)

    dist.on_main(make)
    return load_tokenizer(str(folder))


def _build(lines: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = list(SPECIAL.values())
    words = sorted({word for line in lines for word in line.split()} - set(specials))
    vocabulary = {word: i for i, word in enumerate([*specials, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)
