"""One HTML file per run that a person can read anywhere: no scripts, no requests, pictures
inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vilmedic_ssl.files import write_text
from vilmedic_ssl.report_audit import _findings
from vilmedic_ssl.report_charts import curves
from vilmedic_ssl.report_html import (
    _count,
    _folded,
    _grid,
    _link,
    _list,
    _nested,
    _page,
    _section,
    _table,
    _yaml,
)
from vilmedic_ssl.report_pairs import _pairs
from vilmedic_ssl.report_scores import _cell, _headline

PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".svg": "svg+xml"}
Figure = tuple[str, str, Path]


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
        _pairs(results),
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
    write_text(path, page, errors="backslashreplace")  # names that are not UTF-8
    return path


def _failures(failures: Sequence[tuple[str, str]]) -> str:
    lines = [f"<b>{escape(name)}</b>: {escape(sentence)}" for name, sentence in failures]
    return _section("What failed", f'<div class="alarm">{_list(lines)}</div>' if lines else "")


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
