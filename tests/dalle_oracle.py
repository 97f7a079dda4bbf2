"""dalle-pytorch 1.6.6 in numbers: `tests/oracles/dalle_pytorch_1.6.6.npz` as networks of ours."""

import json
from pathlib import Path

import numpy as np
import torch

from vilmedic_ssl.nets.dalle import Dalle
from vilmedic_ssl.nets.dalle_transformer import TransformerShape
from vilmedic_ssl.nets.dvae import DiscreteVAE, VAEShape

ORACLES = Path(__file__).parent / "oracles"
FILE = np.load(ORACLES / "dalle_pytorch_1.6.6.npz")
META = json.loads(str(FILE["meta"]))
SIZES = {name: META["vae"][name] for name in VAEShape.__annotations__ if name in META["vae"]}
SHAPE = VAEShape(channels=3, **SIZES)
MIXED = ["full", "axial_row", "axial_col", "conv_like"]
PRIMED = 6  # codes of the primed images
# What each case changes; those with weights of their own have two layers.
CASES = {
    **{kind: {"attn_types": [kind]} for kind in MIXED},
    "mixed": {"attn_types": MIXED},
    "noshift": {"shift_tokens": False},
    "stable": {},
    "reversible": {"reversible": True},
    "norotary": {"rotary_emb": False, "depth": 2},
    "sandwich": {"sandwich_norm": True, "depth": 2},
    "shared_emb": {"depth": 2},
    "shared_ids": {"depth": 2, "shared_attn_ids": [0, 1], "shared_ff_ids": [0, 0]},
}


def of(name):
    return torch.from_numpy(FILE[name])


def weights(prefix):
    return {n.removeprefix(prefix): of(n) for n in FILE.files if n.startswith(prefix)}


def vae():
    net = DiscreteVAE(SHAPE)
    net.load_state_dict(weights("vae/sd/"))
    return net


def renamed(case):
    """The shared weights under the names of a case that wraps its layers otherwise."""
    shared = weights("dalle/sd/")
    found = {}
    for name in FILE.files:
        if name.startswith(f"dalle/{case}/sd_names/"):
            own = name.split("/sd_names/")[1]
            usual = own.replace("layers.blocks", "layers.layers")
            usual = usual.replace(".f.net", ".0").replace(".g.net", ".1")
            if case == "noshift":
                usual = usual.replace(".fn.fn.fn.to_", ".fn.fn.fn.fn.fn.to_")
                usual = usual.replace(".1.fn.fn.net", ".1.fn.fn.fn.fn.net")
            found[own] = shared[usual]
    return found


def dalle(case):
    names = ("dim", "depth", "heads", "dim_head")
    shape = TransformerShape(**{**{n: META["dalle"][n] for n in names}, **CASES[case]})
    net = Dalle(
        vae(),
        shape,
        META["dalle"]["num_text_tokens"],
        META["dalle"]["text_seq_len"],
        stable=case == "stable",
        share_input_output_emb=case == "shared_emb",
    )
    given = weights(f"dalle/{case}/sd/") or renamed(case) or weights("dalle/sd/")
    missing, surplus = net.load_state_dict(given, strict=False)
    assert not surplus and all(name.startswith("vae.") for name in missing)
    return net.eval()
