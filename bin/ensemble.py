"""`python bin/ensemble.py CONFIG.yml [key=value ...]`, the same as `vilmedic-ssl ensemble`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vilmedic_ssl.cli import main  # noqa: E402

sys.exit(main(["ensemble", *sys.argv[1:]]))
