"""HTML in pieces, every text escaped: for reports that need nothing but the file itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vilmedic_ssl import __version__

WIDE = 1100  # pixels from which a picture of many parts gets the whole width
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --back: #fff;
  --card: #f6f8fa; --mark: #0060a0; --alarm: #a32d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9da7b1; --line: #3a424b;
  --back: #14181d; --card: #1d232a; --mark: #6cb8f0; --alarm: #ff9a6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink);
  background: var(--back); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { color: var(--soft); margin: .4rem 0; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0;
  overflow-wrap: normal; }
th, td { padding: .35rem 1rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
td.model b { color: var(--mark); }
small { color: var(--soft); white-space: nowrap; display: block; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; padding: .5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9rem; padding: .4rem .2rem 0; }
.one { max-width: 36rem; }
figure.whole { grid-column: 1 / -1; }
.alarm { border-left: 4px solid var(--alarm); padding-left: .6rem; }
ul { margin: .4rem 0; padding-left: 1.4rem; }
pre { overflow-x: auto; background: var(--card); padding: .8rem; border-radius: 8px;
  font-size: .85rem; white-space: pre-wrap; }
a { color: var(--mark); }
summary { cursor: pointer; font-weight: 600; padding: .4rem 0; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line);
  color: var(--soft); }
@media (max-width: 34rem) { table { font-size: .85rem; } th, td { padding-right: .55rem; }
  small { white-space: normal; } }
"""


def _page(title: str, sections: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{datetime.now():%Y-%m-%d %H:%M}, vilmedic_ssl "
        f"{__version__}</p>\n{''.join(sections)}"
        "<footer>Research use only. Not a medical device; not for diagnosis or treatment. "
        "Made by vilmedic_ssl.</footer>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, mark: int | None = None) -> str:
    """Rows of ready HTML under a plain-text header; column `mark` is coloured."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [
        "".join(
            f'<td class="model">{c}</td>' if i == mark else f"<td>{c}</td>"
            for i, c in enumerate(row)
        )
        for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    inside = f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table>{inside}</table></div>'


def _nested(value: Any, depth: int = 0) -> str:
    """Mappings as tables: of mappings, one row each with the union of their keys; of values, two
    columns.

    Inside a table a mapping becomes a line of text.
    """
    if isinstance(value, Mapping) and value and depth:
        return ", ".join(f"{escape(str(k))}&nbsp;{_nested(v, depth)}" for k, v in value.items())
    if isinstance(value, Mapping) and value:
        inner = [v for v in value.values() if isinstance(v, Mapping)]
        if len(inner) < len(value):
            return _table(["", ""], [[escape(str(k)), _nested(v, 1)] for k, v in value.items()])
        keys = sorted(dict.fromkeys(k for v in inner for k in v), key="hash".__eq__)  # wide: last
        rows = [
            [f"<b>{escape(str(name))}</b>", *(_nested(v.get(k, "–"), 1) for k in keys)]
            for name, v in value.items()
        ]
        return _table(["", *map(str, keys)], rows)
    if isinstance(value, (list, tuple)):
        return ", ".join(_nested(v, 1) for v in value) or "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping) or value is None:
        return "" if depth == 0 else "–"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _figure(data: bytes, caption: str, kind: str = "png") -> str:
    code = base64.b64encode(data).decode("ascii")
    words = escape(caption)
    png_width = int.from_bytes(data[16:20], "big") if data[12:16] == b"IHDR" else 0
    look = ' class="whole"' if png_width > WIDE else ""
    return (
        f'<figure{look}><img alt="{words}" src="data:image/{kind};base64,{code}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _grid(pictures: Iterable[tuple[str, bytes, str]]) -> str:
    shown = [_figure(data, caption, kind) for caption, data, kind in pictures]
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def _link(run_dir: Path, caption: str, path: Path) -> str:
    if not path.is_file():
        return f"{escape(caption)}: {escape(path.name)} is missing"
    inside = path.resolve().is_relative_to(run_dir.resolve())
    target = path.resolve().relative_to(run_dir.resolve()).as_posix() if inside else path.as_posix()
    return f'<a href="{escape(quote(target))}">{escape(target)}</a>, {escape(caption)}'


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{body}\n</details>"


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    plain = json.loads(json.dumps(config, default=str))  # paths and tuples become text and lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else "(empty)"
