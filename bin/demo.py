"""`make demo`: make the built-in cohort, pretrain on it, evaluate it, write the report; with the
time each stage took. Interrupted, it continues where it was; `rm -r ckpt/demo` starts it anew.
"""

import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from vilmedic_ssl import console  # noqa: E402
from vilmedic_ssl.cli import main  # noqa: E402

CONFIG = str(REPOSITORY / "config/SELFSUP/simclr-phantom.yml")
RUN = Path("ckpt/demo")


def stages(overrides: list[str]) -> list[tuple[str, list[str]]]:
    """The commands of the demonstration; a training that has left a checkpoint is resumed."""
    resume = ["ckpt=last"] if any(RUN.glob("*_0.pth")) else []
    return [
        ("data", ["download", "phantom"]),
        ("pretraining", ["train", CONFIG, "name=demo", *overrides, *resume]),
        ("evaluation and report", ["ensemble", CONFIG, "name=demo", *overrides]),
    ]


def demonstrate(overrides: list[str]) -> int:
    """Run the stages; returns the exit code of the first that fails."""
    rows, begin = [], time.monotonic()
    for name, command in stages(overrides):
        start = time.monotonic()
        if code := main(command):
            console.say(f"run it again to continue, or `rm -r {RUN}` to start anew")
            return code
        rows.append((name, f"{time.monotonic() - start:.0f} s"))
    rows.append(("all", f"{time.monotonic() - begin:.0f} s"))
    console.result(console.table(("stage", "wall time"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(demonstrate(sys.argv[1:]))
