"""From checkpoints to features, numbers and pictures."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vilmedic_ssl import console
from vilmedic_ssl.errors import Leak, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.features import Features
from vilmedic_ssl.executors.settings import EnsemblorSettings
from vilmedic_ssl.files import write_text
from vilmedic_ssl.registry import find
from vilmedic_ssl.schema import complete

HEADLINE = ("accuracy", "auroc", "image_to_text/R@1", "text_to_image/R@1")


@dataclass
class Outcome:
    """What the plug-ins left behind.

    Attributes:
        results: flat, name -> number; an interval stands under name/low and name/high.
        figures: (plug-in, caption, path); failures: (plug-in, sentence).
    """

    results: dict[str, float] = field(default_factory=dict)
    figures: list[tuple[str, str, Path]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, plugin: str, name: str, value: Any) -> None:
        if name in self.results:
            raise UserError(f"{name} is already there: two {plugin} entries with the same key")
        if isinstance(value, Path):
            self.figures.append((plugin, name, value))
        elif isinstance(value, tuple):
            self.results[name], self.results[f"{name}/low"], self.results[f"{name}/high"] = map(
                float, value
            )
        else:
            self.results[name] = float(value)


def choose_checkpoints(
    folder: Path, mode: str, ckpt: str | None, seed: int | None = None
) -> list[Path]:
    """The files that `ensemblor.mode` (best-N, all, last, a path) or a top-level `ckpt` names, best
    first.

    Args:
        seed: only checkpoints of this seed; None = of all. A file that is named is taken anyway.

    Raises:
        UserError: there are none; mode is none of these.
    """
    if ckpt or mode == "last":
        return [checkpoint.find(folder, ckpt or mode, seed)]
    number = mode.removeprefix("best").removeprefix("-")
    if mode == "all" or (mode.startswith("best") and (mode == "best" or number.isdigit())):
        own = checkpoint.best_files(folder, seed)
        files = [path for path in checkpoint.ranked(folder) if path in own]
        if not files:
            of_seed = "" if seed is None else f" of seed {seed}"
            last = "last_[0-9]*.pth" if seed is None else f"last_{seed}.pth"
            remedy = "train it first, with `vilmedic-ssl train` and the same words"
            if any(folder.glob(last)):
                remedy = (
                    "no evaluation of its training gave one; score the last checkpoint with "
                    "ckpt=last, or train on with ckpt=last"
                )
            raise UserError(f"there is no checkpoint with a score{of_seed} in {folder}; {remedy}")
        return files if mode == "all" else files[: int(number or 1)]
    if Path(mode).is_file() or (folder / mode).is_file():
        return [checkpoint.find(folder, mode)]
    raise UserError(
        f"ensemblor.mode: {mode!r} is neither best-N, all, last, nor the path of a checkpoint"
    )


def refuse_leaks(content: Mapping[str, Any], features: Features, source: Path) -> None:
    """Scored splits must hold no image the model of a checkpoint's `content` was trained on.

    Raises:
        Leak: they do. Splits whose name begins with train are taken as meant.
    """
    for split in features.splits:
        members = features.dataset(split).members()
        seen = int(torch.isin(members, content["trained_on"]).sum())
        if seen and not split.startswith("train"):
            raise Leak(
                f"{seen} of {len(members)} images of split {split!r} are among those {source.name} "
                "was trained on; give the `dataset` keys of the training, or "
                f"{source.parent}/config_{content['seed']}.yml as the config"
            )


def run_plugins(settings: EnsemblorSettings, features: Features, out: Path) -> Outcome:
    """Run the plug-ins in order; one that fails is reported and does not lose the rest."""
    outcome = Outcome()
    out.mkdir(parents=True, exist_ok=True)
    for i, item in enumerate(settings.post_processing or ()):
        ((name, keys),) = item.items()
        where = f"ensemblor.post_processing.{i}"
        plugin: Callable[..., Any] = find(name, folder="post_processing", where=where)
        console.say(f"post-processing: {name}")
        try:
            for caption, value in plugin(
                features, out, **complete(keys, plugin, f"{where}.{name}")
            ):
                outcome.add(name, caption, value)
        except UserError as error:
            reason = str(error).removeprefix(f"{name}: ")
            outcome.failures.append((name, reason))
            console.warn(f"{name} did not finish: {reason}")
        except Exception as error:
            outcome.failures.append((name, f"{type(error).__name__}: {error}"))
            (out / f"{name}_error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            console.warn(
                f"{name} failed ({type(error).__name__}: {error}); details in "
                f"{out / f'{name}_error.txt'}"
            )
    return outcome


def headline(results: dict[str, float]) -> str:
    """The scores of classifiers, of judged encoders and of pairs, beside their reference rows where
    there are any, with intervals; "" for none.
    """
    references = {"model": "", "random init": "random_init/", "raw pixels": "pixels/"}
    rows = []
    for name in results:
        split, _, rest = name.partition("/")
        plugin, _, metric = rest.partition("/")
        if metric not in HEADLINE or split == "validate":
            continue
        names = [f"{split}/{plugin}/{reference}{metric}" for reference in references.values()]
        rows.append((f"{split} {plugin} {metric}", *(_cell(results, name) for name in names)))
    if not rows:
        return ""
    header = ("score", *references)
    filled = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows)]
    return console.table([header[i] for i in filled], [[row[i] for i in filled] for row in rows])


def _cell(results: dict[str, float], name: str) -> str:
    if name not in results:
        return ""
    low, high = results.get(f"{name}/low"), results.get(f"{name}/high")
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{results[name]:.3f}{interval}"


def write_results(folder: Path, results: Mapping[str, float | str]) -> Path:
    """`results.json`: flat, sorted, NaN as null."""
    plain = {name: None if value != value else value for name, value in sorted(results.items())}
    path = folder / "results.json"
    write_text(path, json.dumps(plain, indent=1) + "\n")
    return path
