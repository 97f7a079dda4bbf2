"""YAML in which a scalar keeps the text it was written with, so that the type of its key decides
what it means: `007` is a number of steps and the name of a class.

YAML 1.1 also reads sexagesimal numbers, octal ones and dates; here those are text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from vilmedic_ssl.errors import ConfigError

PLAIN = "plain"  # tag of a scalar without quotes and without a tag of its own
TEXT, LIST, MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
NULLS = ("", "~", "null", "Null", "NULL")
BOOLEANS = {
    word: value
    for value, lower in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for name in lower
    for word in (name, name.capitalize(), name.upper())
}
DIGITS = r"[0-9]+(?:_[0-9]+)*"
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,32}")
NUMBER = re.compile(
    rf"[-+]?(?:{DIGITS}\.(?:{DIGITS})?(?:[eE][-+]?[0-9]+)?|\.{DIGITS}(?:[eE][-+]?[0-9]+)?"
    rf"|{DIGITS}[eE][-+]?[0-9]+)"
)
SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
BLANKS = " \t\r\n"
LONGEST = 300  # digits of a whole number
LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # YAML takes them for the end of a line
ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class Unreadable:
    """What YAML makes of a text that is none."""

    def __init__(self, problem: str):
        self.problem = problem


class Written:
    """A value as it was written.

    Attributes:
        text: of the value, as typed.
        value: what YAML makes of it: null, true or false, a number, a list or mapping (of a whole
            override), or `Unreadable`.
    """

    __slots__ = ("text", "value")

    def __init__(self, text: str, value: Any):
        self.text, self.value = text, value

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Written({self.text!r}, {self.value!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written) and (self.text, self.value) == (other.text, other.value)

    __hash__ = None  # type: ignore[assignment]


def resolve(text: str) -> None | bool | int | float | str:
    """What a scalar without quotes is where nothing else is known. A number that a float cannot
    hold is text.
    """
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if INTEGER.fullmatch(text) and len(text) <= LONGEST:
        return int(text)
    if HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if SPECIAL.fullmatch(text):
        return float(text.replace(".", "", 1))
    if NUMBER.fullmatch(text):
        value = float(text)
        digits = re.split("[eE]", text)[0]
        if math.isfinite(value) and (value != 0 or not re.search("[1-9]", digits)):
            return value
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes; a plain scalar keeps its text."""

    def resolve(self, kind: type[Node], value: str | None, implicit: Any) -> str:
        if kind is ScalarNode:
            return PLAIN if implicit[0] else TEXT
        return MAPPING if kind is MappingNode else LIST


def read_document(text: str) -> Any:
    """A YAML document as mappings, lists, text and `Written` scalars. Keys of mappings are text.

    Raises:
        YAMLError: a syntax error, a key that stands twice, a tag, a document in itself.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(node, ())
    finally:
        loader.dispose()


def _value(node: Node, above: tuple[Node, ...]) -> Any:
    if node in above:
        raise _error("a value that holds itself", node)
    if node.tag == PLAIN:
        value = resolve(node.value)
        return value if isinstance(value, str) else Written(node.value, value)
    if node.tag == TEXT and isinstance(node, ScalarNode):
        return node.value
    if node.tag == LIST and isinstance(node.value, list):
        return [_value(item, (*above, node)) for item in node.value]
    if node.tag == MAPPING and isinstance(node, MappingNode):
        return _mapping(node, (*above, node))
    raise _error(f"the tag {node.tag!r} is not allowed", node)


def _mapping(node: MappingNode, above: tuple[Node, ...]) -> dict[str, Any]:
    """Keys as text; those of `<<: ...` lie below the others."""
    below: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode) or key.tag not in (PLAIN, TEXT):
            raise _error("a key is one text", key)
        if key.tag == PLAIN and key.value == "<<":
            merged = _value(value, above)
            for one in reversed(merged if isinstance(merged, list) else [merged]):
                if not isinstance(one, Mapping):
                    raise _error("what stands behind << has no keys", value)
                below.update(one)
        elif key.value in own:
            raise _error(f"found duplicate key {key.value}", key)
        else:
            own[key.value] = _value(value, above)
    return {**below, **own}


def _error(problem: str, node: Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def read_value(text: str) -> Any:
    """The value of one `key=value`. Outside quotes, brackets and braces nothing has a meaning of
    its own: no comment, no anchor, no line end.

    Returns:
        text, or `Written` where it can also be something else.
    """
    bare = text.strip(BLANKS)
    if not bare.startswith(tuple("[{\"'")):
        value: Any = resolve(bare)
        return text if isinstance(value, str) else Written(text, value)
    try:
        refuse_line_ends(bare)
        _refuse_comments(bare)
        value = read_document(bare)
    except yaml.YAMLError as error:
        value = Unreadable(getattr(error, "problem", None) or str(error).splitlines()[0])
    return value if isinstance(value, str) else Written(text, value)


def opened(value: Any) -> Any:
    """A list or mapping out of an override that is `Written`; anything else as it is."""
    whole = isinstance(value, Written) and isinstance(value.value, (dict, list))
    return value.value if whole else value


def refuse_line_ends(text: str) -> None:
    """Raises:
    YAMLError: a separator would silently become the end of a line.
    """
    if sign := LINE_ENDS.search(text):
        code = f"{ord(sign.group()):04x}"
        raise ConstructorError(
            None, None, f'YAML ends a line at U+{code.upper()}; in double quotes write "\\u{code}"'
        )


def _refuse_comments(text: str) -> None:
    """Raises:
    YAMLError: something between the tokens would be dropped.
    """
    end = 0
    for token in yaml.scan(text, Loader=_Loader):
        if text[end : token.start_mark.index].strip():
            raise ConstructorError(None, None, "a comment; put quotes around a text with #")
        end = max(end, token.end_mark.index)


def plain(node: Any, where: str = "") -> Any:
    """A node as YAML alone reads it, whatever the type of its keys.

    Raises:
        ConfigError: it cannot be read; the sentence begins with `where`.
    """
    if isinstance(node, Written):
        if isinstance(node.value, Unreadable):
            example = "{a: 'x y'}" if node.text.strip(BLANKS).startswith("{") else "['*a*', '*b*']"
            raise ConfigError(
                f"{where or 'value'}: {node.text!r} is not readable YAML ({node.value.problem}); "
                "put quotes around each text inside those of the shell, for example "
                f'"{where or "key"}={example}"'
            )
        return plain(node.value, where)
    if isinstance(node, Mapping):
        dot = "." if where else ""
        return {key: plain(value, f"{where}{dot}{key}") for key, value in node.items()}
    return [plain(item, where) for item in node] if isinstance(node, list) else node


def texts(node: Any, where: str = "") -> Any:
    """A node whose every scalar is text, but null; errors as of `plain`."""
    if isinstance(node, Written):
        if isinstance(node.value, (list, dict)):
            return texts(node.value, where)
        return None if plain(node, where) is None else node.text
    if isinstance(node, Mapping):
        dot = "." if where else ""
        return {key: texts(value, f"{where}{dot}{key}") for key, value in node.items()}
    return [texts(item, where) for item in node] if isinstance(node, list) else node


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that `resolve` takes for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    style = None
    if not isinstance(resolve(text), str):
        style = "'"
    if ESCAPED.search(text):
        style = '"'
    return dumper.represent_scalar(TEXT, text, style=style)


_Dumper.add_representer(str, _text_node)


def write_document(node: Any) -> str:
    """Plain data as YAML text that `read_document` reads as the same."""
    return yaml.dump(
        node, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )


def write_value(value: Any) -> str:
    """Plain data as the value of a `key=value`, which `read_value` reads as the same."""
    return value if isinstance(value, str) and read_value(value) == value else _inner(value)


def _inner(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inner(str(k))}: {_inner(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_inner, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    text = json.dumps(value, ensure_ascii=False)
    return ESCAPED.sub(lambda sign: f"\\u{ord(sign.group()):04x}", text)
