"""Tokenizers: those of a transformers folder, or one trained on the reports; as objects, and as
plain data that a checkpoint can hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError

FURTHER = ("bos_token", "eos_token")
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a transformers folder or the hub.

    Raises:
        UserError: neither a folder with tokenizer files nor a name the hub can be asked for here;
            or one that adds no special tokens, cannot pad, or does not tell words.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer: {name!r} is no folder with tokenizer files and cannot be fetched; "
            "write a local transformers folder, or null to train one on the reports"
        ) from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(
            f"tokenizer: {name!r} has no tokenizer.json, or no token to pad with; save it with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    if len(tokenizer("a").input_ids) == len(tokenizer("a", add_special_tokens=False).input_ids):
        raise UserError(
            f"tokenizer: {name!r} adds no special tokens, and the first token's vector would stand "
            "for the whole text; take a tokenizer that adds [CLS] and [SEP] or <s> and </s>"
        )
    return tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A lower-casing WordPiece tokenizer (the rules of BERT) with at most `vocab_size` entries,
    [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; the same one on every process.
    """
    return restore(dist.on_main(lambda: _trained(texts, vocab_size)))


def _trained(texts: Sequence[str], vocab_size: int) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer

    core = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    letters = sorted({letter for text in texts for letter in core.normalizer.normalize_str(text)})
    letters = [letter for letter in letters if not letter.isspace()]
    # Named here, letters get their numbers in this order; the trainer's own order, by which it
    # decides between pairs that are equally frequent, changes from call to call.
    first = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters)]
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    core.train_from_iterator(texts, trainer)
    core.model = models.WordPiece(core.get_vocab(), unk_token=SPECIAL["unk_token"])
    data = json.loads(core.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIAL.values()]
    core = Tokenizer.from_str(json.dumps(data))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return {"json": core.to_str(), "special": SPECIAL}


def as_data(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer as text: `json` is the content of a tokenizer.json, `special` its special
    tokens.
    """
    known = tokenizer.special_tokens_map
    special = {name: str(known[name]) for name in (*SPECIAL, *FURTHER) if known.get(name)}
    core = tokenizer.backend_tokenizer
    core.no_padding()
    core.no_truncation()
    return {"json": core.to_str(), "special": special}


def restore(data: dict[str, Any]) -> Any:
    """The tokenizer of `as_data`; of `special` nothing but special tokens is read.

    Raises:
        UserError: `json` is no tokenizer.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        core = Tokenizer.from_str(data["json"])
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(
            f"the tokenizer of this checkpoint is not readable ({str(error)[:200]}); take a "
            "checkpoint that training wrote"
        ) from error
    special = {
        name: data["special"][name] for name in (*SPECIAL, *FURTHER) if name in data["special"]
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)
