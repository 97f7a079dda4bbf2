"""Every image-only method twice, with the same weights: ours and, in `peers`, lightly's.

    ours, theirs = twins("BYOL", tiny=True)

They take a `batch_of` the same shape.
"""

from typing import Any

import peers
import torch
from peers_mae import MAE
from torch import Tensor, nn

from vilmedic_ssl import build

SIZE, SMALL, LOCALS = 64, 32, 4  # pixels of a view and of a small crop, small crops per image

LAST = {"bias": False, "last_bias": True}  # as lightly's heads have it


def heads(w: int) -> dict[str, dict[str, Any]]:
    """Our keys; `w` is the width of hidden layers, 1024 in lightly's examples."""
    two = {"widths": [w, w // 4], **LAST}
    three = {"widths": [2 * w] * 3, **LAST}
    normed = {"widths": [w, w // 4], "last_norm": "batch"}
    return {
        "SimCLR": {"projection": {"hidden_dim": "encoder"}},
        "BYOL": {"projector": two, "predictor": two},
        "SimSiam": {
            "projector": {"widths": [w // 2, w // 2, w // 8], "last_norm": "plain"},
            "predictor": {"widths": [w // 16, w // 8], **LAST},
        },
        "BarlowTwins": {"projector": three, "loss": {"lambda_": 0.005}},
        "VICReg": {"projector": three},
        "MoCoV3": {"projector": normed, "predictor": normed},
        "DINO": {
            "head": {"hidden_dim": w // 2, "bottleneck_dim": w // 16, "prototypes": 2 * w},
            "teacher_temp": 0.04,
            "freeze_last_layer": 0.1,
        },
        "MAE": {"decoder_depth": 1, "decoder_dim": w // 2, "fixed_positions": True},
    }


VIT = ("MAE", "DINO, ViT")
METHODS = (*heads(1024), "DINO, ViT")


def twins(name: str, *, tiny: bool = False, **theirs: Any) -> tuple[nn.Module, peers.Theirs]:
    """Ours and theirs in training mode: a ResNet-18 with small stem or a ViT-Tiny on one-channel
    pictures of 64 px; `tiny` = timm's test networks.
    """
    torch.manual_seed(0)
    proto = name.split(",")[0]
    cnn = {"proto": "CNN", "in_chans": 1}
    if name in VIT:
        cnn["backbone"] = "test_vit" if tiny else "vit_tiny_patch16_224"
        cnn["options"] = {"img_size": SIZE, "patch_size": 8, "dynamic_img_size": proto == "DINO"}
    else:
        cnn |= {"backbone": "test_resnet"} if tiny else {"backbone": "resnet18", "stem": "small"}
    ours = build({"proto": proto, "cnn": cnn, **heads(128 if tiny else 1024)[proto]}).train()
    kind = MAE if proto == "MAE" else getattr(peers, proto)
    return ours, kind(ours, **theirs).train()


def batch_of(n: int, views: int, seed: int = 0) -> dict[str, Tensor]:
    """Noise: images (n, views, 1, 64, 64), local (n, 4, 1, 32, 32), seeds (n,)."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randn(n, views, 1, SIZE, SIZE, generator=draw),
        "local": torch.randn(n, LOCALS, 1, SMALL, SMALL, generator=draw),
        "seeds": torch.randint(2**62, (n,), generator=draw),
    }
