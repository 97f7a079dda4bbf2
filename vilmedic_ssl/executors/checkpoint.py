"""Checkpoints: plain containers readable with `weights_only=True`, written atomically, found by
name.
"""

from __future__ import annotations

import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilmedic_ssl import files
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.stored import refuse_malformed
from vilmedic_ssl.registry import find as find_proto

FORMAT = 1
OF_A_RUN = {
    *("model", "ema", "optimizer", "scaler", "random"),
    *("progress", "config", "seed", "data", "trained_on"),
}
ZIP = b"PK\x03\x04"  # by which torch.load knows an archive
LAST = re.compile(r"last_(?P<seed>\d+)\.pth")
NAME = re.compile(r"(?P<score>[-+0-9.einfa]+)_(?P<epoch>\d+)_(?P<seed>\d+)\.pth")


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators as plain lists and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def write(content: dict[str, Any], path: Path) -> None:
    """Save so that `path` is either the old file or the whole new one, whatever happens in between.

    Raises:
        UserError: the disk is full or the folder not writable; the old file is untouched.
    """
    try:
        with files.atomic(path) as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot write the checkpoint {path} ({error}); free some space or change ckpt_dir"
        ) from error


def remove(paths: list[Path]) -> None:
    """Delete checkpoints that are no longer wanted."""
    for path in paths:
        path.unlink(missing_ok=True)


def verify(path: Path, where: str = "") -> None:
    """Compare the bytes of each record with its checksum, which `torch.load` does not look at. A
    file without checksums passes: one from before torch 1.6, which is no archive, or one written
    with `torch.serialization.set_crc32_options(False)`.

    Args:
        where: what stands before the sentence, `init_from: ` for example.

    Raises:
        UserError: they differ.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(ZIP)) != ZIP:
                return
            with zipfile.ZipFile(file) as archive:
                if not any(info.CRC for info in archive.infolist()):
                    return
                damaged = archive.testzip()
    except PermissionError:
        return  # which torch.load tells
    except Exception as error:  # zipfile raises half a dozen kinds for damaged files
        damaged = str(error)
    if damaged is not None:
        raise UserError(
            f"{where}{path} is not a readable checkpoint: its content is not what was written "
            f"({damaged}), so it is damaged; copy it again, or take another one"
        )


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of ours on the CPU; nothing in it is executed.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.pth")) if path.parent.is_dir() else []
        raise UserError(
            f"there is no checkpoint {path}; "
            f"{'there are ' + ', '.join(there) if there else 'train first'}"
        )
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): damaged, or holding "
            "pickled objects; "
            "take another one"
        ) from error
    if (
        not isinstance(content, dict)
        or "model" not in content
        or content.get("format", FORMAT) not in range(FORMAT + 1)
    ):
        raise UserError(
            f"{path} is not a checkpoint of this version: expected a `model` entry, format {FORMAT}"
        )
    return content


def read_run(path: Path, *, whole: bool = False) -> dict[str, Any]:
    """A checkpoint with what continues or evaluates a run, not the weights alone.

    Args:
        whole: true = also what only further training and scoring read is looked at.

    Raises:
        UserError: as `read`, or an entry is missing or of another kind.
    """
    content = read(path)
    if missing := sorted(OF_A_RUN - set(content)):
        raise UserError(
            f"{path} is not a checkpoint of a run: it has no {missing[0]!r}; take one that "
            "training wrote"
        )
    refuse_malformed(content, path, whole=whole)
    return content


def labels_of(content: dict[str, Any]) -> torch.Tensor:
    """Members of the images whose labels the weights of a run have learned from, (N,) int64; of
    checkpoints that do not tell, all they were trained on if their model takes labels or the online
    probe chose it.
    """
    told: torch.Tensor | None = content.get("labels_of")
    if told is not None:
        return told
    try:
        model: Any = find_proto(content["config"]["model"]["proto"], folder="models")
    except (ConfigError, KeyError):  # of a plug-in that is not loaded
        model = None
    by_labels = getattr(model, "classifies", True) or "labels" in model.takes
    by_labels |= (content["config"].get("trainor") or {}).get("early_stop_metric") == "probe"
    trained_on: torch.Tensor = content["trained_on"]
    return trained_on if by_labels else trained_on[:0]


def names_of(content: dict[str, Any]) -> list[str]:
    """Names of the classes or findings in the order of their numbers; empty where the data had no
    labels, and in checkpoints from before they were kept.
    """
    return list(content.get("label_names") or [])


def name_of(score: float, epoch: int, seed: int) -> str:
    """`<score>_<epoch>_<seed>.pth`, the score to six decimals."""
    return f"{round(score, 6)}_{epoch}_{seed}.pth"


def best_files(folder: Path, seed: int | None = None) -> list[Path]:
    """The files named by a score (of one seed), unsorted."""
    found = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.pth"))]
    return [path for path, match in found if match and seed in (None, int(match["seed"]))]


def score_in(path: Path) -> float:
    """The score in a file name."""
    match = NAME.fullmatch(path.name)
    assert match is not None
    return float(match["score"])


def ranked(folder: Path) -> list[Path]:
    """Files named by a score, best first; the direction is the one the training used."""
    files = best_files(folder)
    if not files:
        return []
    lower = read_run(files[0])["progress"]["lower_is_better"]
    return sorted(files, key=score_in, reverse=not lower)


def seed_in(path: Path) -> int:
    """The seed in a file name, of a best checkpoint or a last one."""
    return int(path.stem.rpartition("_")[2])


def best_or_last(folder: Path, seed: int | None, *, where: str) -> Path:
    """The best checkpoint of a run folder, else the newest; where several seeds lie there, that of
    `seed`, None = of all.

    Args:
        where: the key that names the folder.

    Raises:
        UserError: none there; several seeds, and not this one.
    """
    files = [*ranked(folder), *last_files(folder)]
    if not files:
        raise UserError(
            f"{where}: {folder} holds no checkpoint; train it first, or name another folder or file"
        )
    seeds = sorted({seed_in(path) for path in files})
    if seed is None or len(seeds) == 1:
        return files[0]
    own = [path for path in files if seed_in(path) == seed]
    if not own:
        raise UserError(
            f"{where}: {folder} holds the seeds {', '.join(map(str, seeds))}, and none is the "
            f"{seed} of this experiment; name the file, for example {where}={files[0]}"
        )
    return own[0]


def last_files(folder: Path, seed: int | None = None) -> list[Path]:
    """The `last_<seed>.pth` of a run folder (of one seed), the newest first."""
    matches = [(path, LAST.fullmatch(path.name)) for path in folder.glob("last_*.pth")]
    files = [path for path, match in matches if match and seed in (None, int(match["seed"]))]
    return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)


def newest(folder: Path, seed: int | None) -> Path | None:
    """What training continues from (of one seed): the last checkpoint or, where a run was killed
    before it had one, the best; None = there is none.
    """
    if last := last_files(folder, seed):
        return last[0]
    steps = {path: read_run(path)["progress"]["step"] for path in best_files(folder, seed)}
    return max(steps, key=steps.__getitem__, default=None)


def find(folder: Path, name: str, seed: int | None = None) -> Path:
    """What `ckpt=last|best|FILE` means: in the run folder, or a path.

    Raises:
        UserError: no such file; the sentence names those there are.
    """
    of_seed = "" if seed is None else f" of seed {seed}"
    if name == "best":
        files = [path for path in ranked(folder) if path in best_files(folder, seed)]
        if not files:
            raise UserError(
                f"ckpt=best: no checkpoint with a score{of_seed} in {folder}; {_instead(folder)}"
            )
        return files[0]
    if name == "last":
        file = newest(folder, seed)
        if file is None:
            wanted = "last_<seed>.pth" if seed is None else f"last_{seed}.pth"
            raise UserError(f"ckpt=last: there is no {wanted} in {folder}; {_instead(folder)}")
        return file
    return folder / name if (folder / name).is_file() or not Path(name).is_file() else Path(name)


def _instead(folder: Path) -> str:
    """What can be written where a checkpoint is missing."""
    ways = [f"ckpt=last seed={seed_in(path)}" for path in last_files(folder)]
    ways += [f"ckpt=best seed={seed_in(path)}" for path in best_files(folder)]
    return f"train first, or write {' or '.join(dict.fromkeys(ways))}" if ways else "train first"


def load_weights(model: torch.nn.Module, weights: dict[str, Any], source: Path) -> None:
    """Copy weights into a model, all of them.

    Raises:
        UserError: names or shapes differ, or values are not finite; the sentence names the first.
    """
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    surplus = sorted(set(weights) - set(own))
    shapes = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has the unknown {surplus[0]}"
        raise UserError(
            f"{source} does not fit the model of this config: it {what}; use the config it was "
            "trained with"
        )
    if shapes:
        name = shapes[0]
        raise UserError(
            f"{source} does not fit the model of this config: {name} is "
            f"{tuple(weights[name].shape)} there and "
            f"{tuple(own[name].shape)} here; use the config it was trained with"
        )
    odd = [name for name in own if not is_finite(weights[name])]
    if odd:
        raise UserError(
            f"{source}: {len(odd)} tensors hold values that are not finite, {odd[0]} for example: "
            "its training diverged; take an earlier checkpoint"
        )
    model.load_state_dict(weights)


def is_finite(tensor: torch.Tensor) -> bool:
    """True when every value of a tensor is there and a finite number."""
    if tensor.is_meta:  # saved without its values
        return False
    wide = tensor.float() if tensor.is_floating_point() else tensor  # 8-bit floats cannot be asked
    return bool(torch.isfinite(wide).all())
