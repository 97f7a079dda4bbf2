"""`python data/download.py NAME[,NAME]`: fetch data sets into data/; without a name, list them."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("vilmedic_ssl") is None:  # not installed: run from the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vilmedic_ssl.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["download", *sys.argv[1:]]))
