"""Prompt manifests: what is asked of a text encoder for every class or finding."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from vilmedic_ssl import config
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.registry import closest

SLOT = "{}"
KEYS = ("templates", "negative", "labels")
LABEL_KEYS = ("phrases", "grid", "templates", "negative")
MOST = 5000  # prompts of one label; a grid of more is a slip


@dataclass(frozen=True)
class Prompts:
    """Whole sentences by label: `positive` say that it is there, `negative` that it is not (empty
    where the manifest says nothing of that kind).
    """

    positive: dict[str, list[str]]
    negative: dict[str, list[str]]

    def texts(self) -> list[str]:
        """Every sentence once."""
        every = [*self.positive.values(), *self.negative.values()]
        return list(dict.fromkeys(text for texts in every for text in texts))


def read_prompts(source: str | Mapping[str, Any], plugin: str) -> Prompts:
    """A manifest from a YAML file (as given, or below the repository) or from the config itself.

    Raises:
        ConfigError: no such file, or not laid out as docs/paired-scores.md says.
    """
    if isinstance(source, str):
        path = config.find_file(source)
        node, where = config.read_texts(path), str(path)
    else:
        node, where = dict(source), f"{plugin}.prompts"
    _refuse_unknown(node, KEYS, where)
    labels = node.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        raise ConfigError(
            f"{where}: write `labels:` and below it every class or finding with its phrases, for "
            "example `Cardiomegaly: [cardiomegaly, enlarged heart]`"
        )
    templates = _list(node.get("templates", [SLOT]), f"{where}: templates")
    negative = _list(node.get("negative", []), f"{where}: negative")
    positive_of, negative_of = {}, {}
    for name, entry in labels.items():
        if not isinstance(name, str):  # YAML reads No as false
            raise ConfigError(f"{where}: labels: put quotes around {name!r}")
        at = f"{where}: labels.{name}"
        entry = entry if isinstance(entry, Mapping) else {"phrases": entry}
        _refuse_unknown(entry, LABEL_KEYS, at)
        phrases = _phrases(entry, at)
        positive_of[name] = _filled(_list(entry.get("templates", templates), at), phrases, at)
        negative_of[name] = _filled(_list(entry.get("negative", negative), at), phrases, at)
        if not positive_of[name]:
            raise ConfigError(f"{at}: no prompt comes of this; write a phrase, or templates")
    return Prompts(positive_of, negative_of)


def matched(
    prompts: Prompts, names: Sequence[str], keep: Sequence[str] | None, plugin: str
) -> Prompts:
    """The prompts of labels that the data has, in the order of its `names`.

    Without `keep`, further labels of a manifest are left out; one that looks like a misspelt name
    of the data is refused.

    Raises:
        UserError: a name of `keep`, or one that looks misspelt, is no label of the data; none is;
            or a name of `keep` has no prompts.
    """
    asked = list(prompts.positive if keep is None else keep)
    free = [name for name in names if name not in prompts.positive]
    for name in asked:
        if name not in prompts.positive:
            raise UserError(
                f"{plugin}.labels_keep: there are no prompts for {name!r}; "
                f"{closest(name, prompts.positive)}"
            )
        if name not in names and (keep is not None or _looks_like(name, free)):
            raise UserError(
                f"{plugin}.prompts: {name!r} is no label of the data; "
                f"{closest(name, free or names)}"
            )
    found = [name for name in names if name in asked]
    if not found:
        raise UserError(
            f"{plugin}.prompts: none of {', '.join(asked)} is a label of the data; "
            f"its labels: {', '.join(names)}"
        )
    other = [name for name in asked if name not in names]
    if other:
        warn(f"{plugin}: the data has no label {', '.join(other)}; their prompts are not used")
    return Prompts(
        {name: prompts.positive[name] for name in found},
        {name: prompts.negative[name] for name in found},
    )


def _looks_like(name: str, names: Sequence[str]) -> bool:
    """A slip in spelling, case or underscores, not merely a similar finding."""
    plain = [other.lower().replace("_", " ") for other in names]
    return bool(difflib.get_close_matches(name.lower().replace("_", " "), plain, cutoff=0.8))


def _refuse_unknown(node: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in node:
        if key not in keys:
            raise ConfigError(f"{where}: there is no key {key!r}; {closest(str(key), keys)}")


def _list(value: Any, where: str) -> list[str]:
    """One text, or several."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise ConfigError(f"{where}: expected text or a list of texts, found {value!r}")
    return [text.strip() for text in values]


def _phrases(entry: Mapping[str, Any], where: str) -> list[str]:
    """The phrases listed, then one word of each list of `grid` in every combination; an empty text
    in a list leaves that place out.
    """
    phrases = _list(entry.get("phrases", []), f"{where}.phrases")
    grid = entry.get("grid", [])
    if not isinstance(grid, (list, tuple)):
        raise ConfigError(f"{where}.grid: expected a list of lists of words, found {grid!r}")
    lists = [_list(words, f"{where}.grid") for words in grid]
    if math.prod(map(len, lists)) > MOST:
        raise ConfigError(f"{where}.grid: more than {MOST} combinations; write fewer words")
    if lists:
        phrases += [" ".join(filter(None, words)) for words in product(*lists)]
    return phrases


def _filled(templates: Sequence[str], phrases: Sequence[str], where: str) -> list[str]:
    """Every phrase in every template; a template without a slot is a sentence of its own."""
    for template in templates:
        if template.count(SLOT) > 1 or (set("{}") & set(template.replace(SLOT, ""))):
            raise ConfigError(f"{where}: write {SLOT} once where the phrase goes, in {template!r}")
    texts = [
        template.replace(SLOT, phrase)
        for template in templates
        for phrase in (phrases if SLOT in template else [""])
    ]
    if len(texts) > MOST:
        raise ConfigError(f"{where}: {len(texts)} prompts; write fewer words, at most {MOST}")
    return list(dict.fromkeys(texts))
