"""What to write instead, when an audit stops a run: words that can be pasted as they are."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl.data.exclude import LISTED, matching, write_list

if TYPE_CHECKING:
    from vilmedic_ssl.data.auditing.findings import Finding
    from vilmedic_ssl.data.auditing.parts import Part

INLINE = 5  # images that a command names; more of them go into a file
# folders, and endings of names, of what lies beside images and is none
BESIDE = ("mask", "segmentation", "annotation", "label", "overlay", "thumbnail")
TRICKY = ("'", '"', "\\", "$", "`", "!")  # left to a file: not every shell and YAML agree on them


def override(key: str, value: Any) -> str:
    """One word of a command line that sets a key to plain data."""
    return shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")


def divided(config: str, folder: Path) -> str:
    """How to make a division by patient.

    Args:
        config: the words that follow `vilmedic-ssl split`.
    """
    names = ("splits.json", *(f"splits_{n}.json" for n in range(2, 1000)))
    file = next(folder / name for name in names if not (folder / name).exists())
    out, go_on = shlex.quote(str(file)), shlex.quote(f"split_file={file}")
    return (
        f"divide the data by patient with `vilmedic-ssl split {config} --out {out}` and go on with "
        f"{go_on} and the same dataset keys"
    )


def left_out(
    leaks: Sequence[Finding], parts: Sequence[Part], data: Mapping[str, Any], folder: Path
) -> str:
    """How to take one side of every pair out of the data, in one go.

    Args:
        leaks: all that an exclusion mends.
        data: the dataset as the config describes it.
        folder: for a file of names, where they are many.
    """
    names = dict.fromkeys(name for leak in leaks for name in _names(leak, leak.splits[0]))
    taken = list(names)
    if "exclude" not in data:
        file = write_list(folder, taken)
        return f"take the {len(taken):,} samples that {file} lists out of one of the splits"
    pattern = _pattern(leaks, parts)
    if pattern:
        entries, what = [pattern], f"they all match {pattern}: leave them out with"
    else:
        sides = " and ".join(dict.fromkeys(leak.splits[0] for leak in leaks))
        entries, what = _entries(taken, folder), f"leave those of {sides} out with"
    return f"{what} {override('dataset.exclude', [*(data['exclude'] or ()), *entries])}"


def _names(leak: Finding, split: str) -> list[str]:
    side = f"{split}:"
    return [row.removeprefix(side) for row in leak.rows if row.startswith(side)]


def _entries(names: Sequence[str], folder: Path) -> list[str]:
    """Entries of `exclude` for just these images."""
    lines = [name for name in names if "\n" not in name]
    plain = all(name.isprintable() and not any(c in name for c in TRICKY) for name in names)
    if plain and len(names) <= INLINE:
        return [glob.escape(name) for name in names]
    broken = [glob.escape(name).replace("\n", "?") for name in names if "\n" in name]
    return [f"{LISTED}{write_list(folder, lines)}", *broken] if lines else broken


def _pattern(leaks: Sequence[Finding], parts: Sequence[Part]) -> str:
    """The glob of a folder such as `masks`, or an ending such as `_mask`, that every image of every
    pair has and some images have not; "" = none.
    """
    flagged = [Path(n) for leak in leaks for split in leak.splits for n in _names(leak, split)]
    everything = [name for part in parts if part.source == 0 for name in part.ids]
    folders = set.intersection(*(set(path.parts[:-1]) for path in flagged))
    endings = {path.stem.replace("-", "_").rpartition("_")[2] for path in flagged}
    globs = [(f"{word}/*", word) for word in sorted(folders)]
    globs += [(f"*/{word}/*", word) for word in sorted(folders)]
    globs += [(f"*[_-]{word}.*", word) for word in endings]
    for pattern, word in globs:
        if word.lower().removesuffix("s") in BESIDE and word.isalnum():
            explained = all(matching(path.as_posix(), [pattern]) for path in flagged)
            if explained and not all(matching(name, [pattern]) for name in everything):
                return pattern
    return ""
