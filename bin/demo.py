"""`make demo`: make the built-in cohort, pretrain on it, score it, write the report; with the time
each stage took.
"""

import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from vilmedic_ssl import console  # noqa: E402
from vilmedic_ssl.cli import main  # noqa: E402

CONFIG = str(REPOSITORY / "config/SELFSUP/simclr-phantom.yml")
STAGES = (
    ("data", ["download", "phantom"]),
    ("pretraining", ["train", CONFIG, "name=demo", "overwrite=true"]),
    ("evaluation and report", ["ensemble", CONFIG, "name=demo", "overwrite=true"]),
)

rows, begin = [], time.monotonic()
for name, arguments in STAGES:
    started = time.monotonic()
    if code := main(arguments):
        sys.exit(code)
    rows.append((name, f"{time.monotonic() - started:.0f} s"))
rows.append(("all", f"{time.monotonic() - begin:.0f} s"))
console.result(console.table(("stage", "wall time"), rows))
