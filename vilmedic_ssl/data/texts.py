"""From a report to what a model reads: processing, choice of sections and sentences, tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilmedic_ssl import console
from vilmedic_ssl.data.patients import Unknown
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

Batch = dict[str, Any]
MANY = 5000  # reports, from which their processing takes seconds
KEYS = ("text", "seq")  # blocks of a dataset node that hold text settings


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What a paired model reads of a report.

    Attributes:
        tokenizer: a transformers folder or hub name; null = that of model.encoder.proto, or where
            there is none WordPiece trained on the training reports. Every checkpoint holds it.
        tokenizer_max_len: tokens of a text at most, special ones included; null = as many as the
            text encoder takes. Batches are padded to their longest text.
        vocab_size: entries of a trained tokenizer, at most.
        processing: clean keeps numbers, units and negations; none; or a cleaner of older systems
            (r2gen, ifcc, gloria, rouge), which are known to destroy some of these.
        language: of the reports, en or es: for sentences, sides and phrases about priors.
        sections: which sections are read, in this order, for example [findings, impression];
            empty = the whole report.
        sentence: all; or random = one sentence of the text, another one in each epoch (validation
            losses draw a fixed one, scores read all).
        min_words: shorter sentences are not drawn, unless there are no others.
        drop_priors: take out comparisons with earlier studies, which no image shows.
        mirror: share of training images that are mirrored, left and right exchanged in their text.
    """

    tokenizer: str | None = None
    tokenizer_max_len: int | None = None
    vocab_size: int = 8192
    processing: str = "clean"
    language: Literal["en", "es"] = "en"
    sections: list[str] = ()  # type: ignore[assignment]
    sentence: Literal["all", "random"] = "all"
    min_words: int = 3
    drop_priors: bool = False
    mirror: float = 0.0

    def __post_init__(self) -> None:
        from vilmedic_ssl.data.reports import PROCESSING, SECTIONS

        if self.processing not in PROCESSING:
            raise ConfigError(
                f"dataset: there is no processing {self.processing!r}; "
                f"{closest(self.processing, PROCESSING)}"
            )
        for name in self.sections:
            if name not in SECTIONS:
                raise ConfigError(
                    f"dataset: reports have no section {name!r}; {closest(name, SECTIONS)}"
                )
        if self.tokenizer_max_len is not None and self.tokenizer_max_len < 3:
            raise ConfigError(
                f"dataset: tokenizer_max_len {self.tokenizer_max_len} leaves no room between the "
                "two special tokens; write 3 or more, or null"
            )
        if self.vocab_size < 100:
            raise ConfigError(f"dataset: vocab_size {self.vocab_size}; write 100 or more")
        if not 0 <= self.mirror <= 1:
            raise ConfigError(f"dataset: mirror {self.mirror}; write a share from 0 to 1")
        if self.drop_priors and self.processing != "clean":
            raise ConfigError(
                f"dataset: drop_priors needs processing clean, not {self.processing!r}"
            )


class Texts:
    """Reads reports for a model; one object serves all splits.

    Args:
        settings: the YAML keys.
        tokenizer: of transformers; None = none yet, batches then carry text alone.

    Attributes:
        limit: tokens at most.
    """

    def __init__(self, settings: TextSettings, tokenizer: Any = None):
        from vilmedic_ssl.data.reports import DESTROYS

        self.settings, self.tokenizer, self.limit = settings, tokenizer, settings.tokenizer_max_len
        if settings.processing in DESTROYS:
            _warn_once(f"processing {settings.processing}: {DESTROYS[settings.processing]}")

    def prepare(self, report: str) -> str:
        """The report as the model reads it, "" where it says nothing."""
        from vilmedic_ssl.data.reports import PROCESSING, clean, select

        keys = self.settings
        if keys.sections:
            report = select(report, keys.sections)
        if keys.processing == "clean":
            return clean(report, language=keys.language, drop_priors=keys.drop_priors)
        return " ".join(PROCESSING[keys.processing](report).split())

    def prepare_all(self, reports: Sequence[str], split: str) -> list[str]:
        """`prepare` of each."""
        shown = console.progress(reports, desc=f"reports of {split}", unit="report")
        return [self.prepare(report) for report in (shown if len(reports) > MANY else reports)]

    def draw(self, text: str, seed: int) -> tuple[str, bool]:
        """What a prepared text becomes in training, and whether its image is to be mirrored; equal
        seeds draw the same.
        """
        from vilmedic_ssl.data.reports import mirror

        keys, dice = self.settings, random.Random(f"text {seed}")
        if keys.sentence == "random":
            text = dice.choice(self.choices(text))
        mirrored = dice.random() < keys.mirror
        return (mirror(text, keys.language) if mirrored else text), mirrored

    def choices(self, text: str) -> list[str]:
        """The sentences that may be drawn."""
        from vilmedic_ssl.data.reports import sentences

        found = sentences(text, self.settings.language)
        return [s for s in found if len(s.split()) >= self.settings.min_words] or found or [text]

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (B, L) int64, padded to the longest, and `words` (B, L):
        the number of each token's word, special tokens being words of their own, -1 for padding.
        """
        tokens = self._encode(texts)
        words = torch.full_like(tokens["input_ids"], -1)
        for row, encoding in zip(words, tokens.encodings, strict=True):
            numbers = torch.tensor(_words(encoding))
            row[: len(numbers)] = numbers
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "words": words,
        }

    def known_tokens(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Of each text how many tokens the tokenizer knows and how many there are, special ones
        aside.
        """
        unknown, found = self.tokenizer.unk_token_id, []
        for encoding in self._encode(texts).encodings:
            own = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            tokens = [token for token, special in own if not special]
            found.append((sum(token != unknown for token in tokens), len(tokens)))
        return found

    def word_strings(self, text: str) -> list[str]:
        """The words as `words` of `batch` numbers them."""
        encoding = self._encode([text]).encodings[0]
        numbers = _words(encoding)
        found = []
        for word in range(max(numbers) + 1):
            tokens = [i for i, number in enumerate(numbers) if number == word]
            if encoding.special_tokens_mask[tokens[0]]:
                found.append(encoding.tokens[tokens[0]])
            else:
                begin, end = encoding.offsets[tokens[0]][0], encoding.offsets[tokens[-1]][1]
                found.append(text[begin:end].strip())
        return found

    def _encode(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts),
            padding="longest",
            padding_side="right",
            truncation=self.limit is not None,
            max_length=self.limit,
            return_tensors="pt",
            return_token_type_ids=False,
        )

    def collate(self, batch: Batch, items: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds to a batch what its items' `text`, `study` and `patient` come to: tokens, and
        `groups` (B, 3) int64, equal numbers for equal texts, studies and patients.
        """
        if self.tokenizer is None:
            return batch
        texts = [item["text"] for item in items]
        named = [
            group_names(t, item.get("study"), item.get("patient"), item["id"])
            for t, item in zip(texts, items, strict=True)
        ]
        groups = torch.tensor([[_number(name) for name in row] for row in named])
        return {**batch, **self.batch(texts), "groups": groups}


def group_names(text: str, study: str | None, patient: str | None, own: str) -> list[str]:
    """What a pair is alike by: its text, its study (names of studies may repeat between patients),
    its patient; `own` stands for what is not known.
    """
    patient = None if isinstance(patient, Unknown) else patient
    study = None if isinstance(study, Unknown) else study
    of_study = f"study {patient or ''} / {study}" if study else f"own study {own}"
    return [f"text {text}", of_study, f"patient {patient}" if patient else f"own patient {own}"]


def _words(encoding: Any) -> list[int]:
    """The number of each token's word; padding, which is on the right, is left out."""
    numbers: list[int] = []
    before: int | None = None
    for attended, word in zip(encoding.attention_mask, encoding.word_ids, strict=True):
        if not attended:
            break
        new = word is None or word != before
        numbers.append((numbers[-1] if numbers else -1) + new)
        before = word
    return numbers


def _number(name: str) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big"
        )
        >> 1
    )


_told: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _told:
        _told.add(text)
        console.warn(text)


def settings_of(node: Mapping[str, Any]) -> TextSettings:
    """The text settings inside a checked dataset node, wherever its proto keeps them."""
    from vilmedic_ssl.schema import build, schema

    for key in KEYS:
        if isinstance(node.get(key), Mapping):
            node = node[key]
    keys = {k: node[k] for k in schema(TextSettings) if k in node}
    settings: TextSettings = build(keys, cls=TextSettings, where="dataset")
    return settings
