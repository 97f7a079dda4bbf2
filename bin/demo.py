"""`make demo`: draw the built-in cohort, pretrain, evaluate; interrupted, it continues."""

import sys
import time
from pathlib import Path

REPOSITORY, RUN = Path(__file__).resolve().parents[1], Path("ckpt/demo")
sys.path.insert(0, str(REPOSITORY))

from vilmedic_ssl import console  # noqa: E402
from vilmedic_ssl.cli import main  # noqa: E402


def demonstrate(overrides: list[str]) -> int:  # exit code of the first stage that fails
    words = [str(REPOSITORY / "config/SELFSUP/simclr-phantom.yml"), "name=demo", *overrides]
    train = ["train", *words, *["ckpt=last"] * any(RUN.glob("*_0.pth"))]
    rows, begin = [], time.monotonic()
    for command in (["download", "phantom"], train, ["ensemble", *words]):
        start = time.monotonic()
        if code := main(command):
            console.say(f"run it again to continue; `rm -r {RUN}` starts anew, if nobody uses it")
            return code
        rows.append((command[0], f"{time.monotonic() - start:.0f} s"))
    rows.append(("all", f"{time.monotonic() - begin:.0f} s"))
    console.result(console.table(("stage", "wall time"), rows))
    return 0


sys.exit(demonstrate(sys.argv[1:])) if __name__ == "__main__" else None
