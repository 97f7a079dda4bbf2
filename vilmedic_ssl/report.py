"""One HTML file per run that a person can read anywhere: no scripts, no requests, pictures
inside.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vilmedic_ssl import __version__
from vilmedic_ssl.report_charts import curves, forest

REFERENCES = {"": "model", "random_init": "random init", "pixels": "raw pixels"}
PLUGINS = {"linear_probe": "Linear probe", "knn": "kNN"}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
}
PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".svg": "svg+xml"}
SHOWN = 50  # rows or patients of a finding on a page; audit.json has all of them
Figure = tuple[str, str, Path]
Row = tuple[str, str, Callable[[str], str]]

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


def write_report(
    run_dir: Path,
    *,
    title: str,
    results: Mapping[str, float],
    figures: Sequence[Figure],
    config: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    card: Mapping[str, Any],
    checkpoints: Sequence[str],
    failures: Sequence[tuple[str, str]],
    audit: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `run_dir/report.html`; anything empty is left out, nothing is fetched when it is read.

    Args:
        results: flat numbers, "<split>/<plug-in>[/<reference>]/<metric>", intervals under "/low"
            and "/high".
        figures: (plug-in, caption, path); pictures are embedded, other files linked.
        config: the resolved configuration.
        log: records {"kind": "step" | "eval" | "health", "step": int, ...} of the training.
        card: data card, nested mappings: split -> images, patients, hash, ...
        checkpoints: names of the checkpoints that were scored.
        failures: (plug-in, sentence) of what did not work.
        audit: findings about the data, as their `as_dict()`.

    Returns:
        the path of the report.
    """
    sections = [
        _failures(failures),
        _headline(results),
        _section("Training", _grid(curves(log))),
        _pictures(run_dir, figures),
        _numbers(results),
        _section("Data", _nested(card)),
        _section("Audit of the data", _findings(audit)),
        _section("Checkpoints scored", _list(escape(name) for name in checkpoints)),
        _section(
            "Configuration", _folded("the resolved YAML", f"<pre>{escape(_yaml(config))}</pre>")
        ),
    ]
    path = run_dir / "report.html"
    page = _page(title, sections)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")  # names that are not UTF-8
    return path


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


# ---------------------------------------------------------------- sections


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _failures(failures: Sequence[tuple[str, str]]) -> str:
    lines = [f"<b>{escape(name)}</b>: {escape(sentence)}" for name, sentence in failures]
    return _section("What failed", f'<div class="alarm">{_list(lines)}</div>' if lines else "")


def _headline(results: Mapping[str, float]) -> str:
    """Model, untrained encoder and raw pixels side by side, as a picture and as tables."""
    body = ""
    for split in _scored_splits(results):
        note = "" if split == "test" else " (chose the settings: for choosing, not for reporting)"
        table = _comparison(results, _rows(results, split, each=False))
        classes = _rows(results, split, each=True)
        if classes:
            table += _folded("AUROC of each class or finding", _comparison(results, classes))
        title = split + note
        body += f"<h3>{escape(title)}</h3>{table}" if split == "test" else _folded(title, table)
    chart = forest(
        [
            (f"{plugin}\n{metric}", {t: _triple(results, name(r)) for r, t in REFERENCES.items()})
            for plugin, metric, name in _rows(results, "test", each=False)
        ]
    )
    picture = _figure(chart, "Test scores with their 95 % intervals") if chart else ""
    words = (
        "<p>In brackets: 95 % bootstrap interval over patients; the differences are paired. "
        "Chance is 0.5 for AUROC and 1 / classes for balanced accuracy.</p>"
    )
    parts = f'<div class="one">{picture}</div>{_not_above(results)}{body}{words}' if body else ""
    return _section("What the representation is worth", parts)


def _rows(results: Mapping[str, float], split: str, *, each: bool) -> list[Row]:
    """(plug-in, metric, reference -> name) of the means, or of each class, that a split was scored
    by.
    """
    rows: list[Row] = []
    for name in results:
        where, plugin, metric, *rest = [*name.split("/", 3), "", ""]
        judge = next((j for j in PLUGINS if plugin == j or plugin.startswith(f"{j}_")), None)
        is_class = metric == "auroc" and bool(rest[0])
        if (
            where != split
            or judge is None
            or metric not in METRICS
            or name.endswith(("/low", "/high"))
        ):
            continue
        if is_class == each and (is_class or not rest[0]):
            key = plugin.removeprefix(judge).replace("_", " ")
            path = f"{metric}/{rest[0]}" if is_class else metric
            title = rest[0] if is_class else METRICS[metric]
            rows.append((PLUGINS[judge] + key, title, partial(_named, split, plugin, path)))
    return rows


def _named(split: str, plugin: str, metric: str, reference: str) -> str:
    return "/".join(part for part in (split, plugin, reference, metric) if part)


def _comparison(results: Mapping[str, float], rows: Sequence[Row]) -> str:
    """One line per metric: model, references, and what training has added."""
    lines = [
        [
            f"{escape(plugin)}<small>{escape(metric)}</small>",
            *(_cell(results, name(r)) for r in REFERENCES),
            *(_cell(results, name(f"minus_{r}"), sign="+") for r in REFERENCES if r),
        ]
        for plugin, metric, name in rows
    ]
    differences = [f"model − {title}" for r, title in REFERENCES.items() if r]
    return _table(["", *REFERENCES.values(), *differences], lines, mark=1)


def _not_above(results: Mapping[str, float]) -> str:
    """The test scores in which training did not clearly beat a reference, if any."""
    lines = [
        escape(f"{plugin}, {metric}: {title}")
        for plugin, metric, name in _rows(results, "test", each=False)
        for reference, title in REFERENCES.items()
        if reference and (_triple(results, name(f"minus_{reference}")) or (1, 1, 1))[1] <= 0
    ]
    words = "<p>Not clearly above (the interval of the difference is not wholly above 0):</p>"
    return f'<div class="alarm">{words}{_list(lines)}</div>' if lines else ""


def _pictures(run_dir: Path, figures: Sequence[Figure]) -> str:
    body = ""
    for plugin in dict.fromkeys(plugin for plugin, _, _ in figures):
        mine = [(caption, Path(path)) for name, caption, path in figures if name == plugin]
        shown = [(c, p) for c, p in mine if p.suffix.lower() in PICTURES and p.is_file()]
        linked = [_link(run_dir, c, p) for c, p in mine if (c, p) not in shown]
        body += f"<h3>{escape(plugin)}</h3>"
        body += _grid((c, p.read_bytes(), PICTURES[p.suffix.lower()]) for c, p in shown)
        body += _folded(_count(linked, "file"), _list(linked)) if linked else ""
    return _section("Pictures and files", body)


def _numbers(results: Mapping[str, float]) -> str:
    rows = [
        [escape(name), _cell(results, name)]
        for name in results
        if not name.endswith(("/low", "/high"))
    ]
    return _section(
        "All numbers",
        _folded(_count(rows, "number"), _table(["name", "value"], rows)) if rows else "",
    )


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """One line per finding, its cases folded below; the first rows and patients by name."""
    rows = []
    for item in findings:
        head = f"<b>{escape(item['kind'])}</b><small>{escape(item['severity'])}</small>"
        words = f"<div>{escape(item['message'])}</div>"
        for name in ("examples", "patients", "rows"):
            shown = [escape(str(value)) for value in item[name][:SHOWN]]
            shown += [f"and {len(item[name]) - SHOWN:,} more"] if len(item[name]) > SHOWN else []
            words += _folded(_count(item[name], name.removesuffix("s")), _list(shown)) * bool(shown)
        alarm = ' class="alarm"' if item["severity"] == "leak" else ""
        rows.append([f"<div{alarm}>{head}</div>", words])
    return _table(["", ""], rows) if rows else ""


# ---------------------------------------------------------------- pieces


def _scored_splits(results: Mapping[str, float]) -> list[str]:
    """The splits with a probe or vote, test first."""
    splits = dict.fromkeys(name.split("/")[0] for name in results)
    return sorted((s for s in splits if _rows(results, s, each=False)), key=lambda s: s != "test")


def _triple(results: Mapping[str, float], name: str) -> tuple[float, float, float] | None:
    if name not in results:
        return None
    value = float(results[name])
    return (
        value,
        float(results.get(f"{name}/low", value)),
        float(results.get(f"{name}/high", value)),
    )


def _cell(results: Mapping[str, float], name: str, sign: str = "") -> str:
    """A number with its interval in small print."""
    if name not in results:
        return "–"
    value = (
        f"<b>{results[name]:{sign}.3f}</b>"
        if abs(results[name]) < 1000
        else f"<b>{results[name]:,.0f}</b>"
    )
    if f"{name}/low" not in results or f"{name}/high" not in results:
        return value
    low, high = results[f"{name}/low"], results[f"{name}/high"]
    return f"{value}<small>[{low:{sign}.3f}, {high:{sign}.3f}]</small>"


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
    return (
        f'<figure><img alt="{words}" src="data:image/{kind};base64,{code}">'
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
