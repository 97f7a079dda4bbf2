"""`python bin/train.py CONFIG.yml [key=value ...]`, the same as `vilmedic-ssl train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vilmedic_ssl.cli import main  # noqa: E402

sys.exit(main(["train", *sys.argv[1:]]))
