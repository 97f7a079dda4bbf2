"""The folder of a run and what is written into it while it lives."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console, dist, files, locks
from vilmedic_ssl.errors import UserError


@dataclass(frozen=True)
class Run:
    """`<ckpt_dir>/<name>/` and the seed; several seeds may share the folder."""

    folder: Path
    seed: int

    @property
    def last(self) -> Path:
        return self.folder / f"last_{self.seed}.pth"

    @property
    def config_file(self) -> Path:
        return self.folder / f"config_{self.seed}.yml"

    @property
    def log_file(self) -> Path:
        return self.folder / f"log_{self.seed}.jsonl"

    @property
    def init_file(self) -> Path:
        """The key map of `init_from`."""
        return self.folder / f"init_{self.seed}.json"

    @property
    def lock_file(self) -> Path:
        """Who trains or scores this seed now."""
        return self.folder / f"lock_{self.seed}.json"

    @contextmanager
    def owned(self, doing: str) -> Iterator[None]:
        """The folder, made where it is missing, with nobody else at work on this seed; a folder
        that stays empty is removed. The main process has the lock, the others wait for it.

        Args:
            doing: "trained" or "scored".

        Raises:
            UserError: another process has it, or it cannot be made or written to.
        """
        with ExitStack() as stack:
            dist.on_main(lambda: self._own(stack, doing))
            yield

    def _own(self, stack: ExitStack, doing: str) -> None:
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, self.folder)
            here = f"{self.folder}, seed {self.seed}, is being {doing}"
            remedy = "wait for it or stop it"
            remedy += ", or write another name= or seed=" if doing == "trained" else ""
            stack.enter_context(locks.owner(self.lock_file, here, remedy))
            for folder in (self.folder, self.folder / "reconstructions"):
                files.remove_partials(folder)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}); change ckpt_dir or name"
            ) from error

    def save_config(self, config: dict[str, Any]) -> None:
        """The resolved config, with its format version and hash."""
        if dist.rank() == 0:
            head = f"# format 1, hash {yaml_config.digest(config)}\n"
            files.write_text(self.config_file, head + yaml_config.dump(config))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL log; a line that a killed process wrote half of is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Log:
    """JSONL always, TensorBoard where it is installed.

    Args:
        resumed_at: step training continues from; later records of the interrupted run are dropped.
    """

    def __init__(self, run: Run, *, resumed_at: int = 0):
        self.run, self._file, self._board = run, None, None
        if dist.rank() != 0:
            return
        before = read_log(run.log_file) if resumed_at else []
        kept = [record for record in before if record.get("step", 0) <= resumed_at]
        files.write_text(run.log_file, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = run.log_file.open("a", encoding="utf-8")
        self._board = _tensorboard(run, resumed_at)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One record; numbers also become TensorBoard scalars."""
        if self._file is None:
            return
        values = _without_nan(values)
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in {**values, **values.get("scores", {})}.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _without_nan(value: Any) -> Any:
    """NaN is not JSON; null is."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if value != value else value


def _tensorboard(run: Run, resumed_at: int) -> Any:
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        console.warn(
            f"TensorBoard is installed but cannot be imported ({error}); logging to JSONL only"
        )
        return None
    later = resumed_at + 1 if resumed_at else None  # what the interrupted run logged behind it
    return SummaryWriter(str(run.folder / "tensorboard" / str(run.seed)), purge_step=later)
