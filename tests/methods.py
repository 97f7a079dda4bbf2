"""Every registered model in a size for tests; one that a plug-in adds needs no entry here."""

import torch

from vilmedic_ssl.registry import find, protos
from vilmedic_ssl.schema import schema

ENCODERS = {
    "batch norm": {"backbone": "test_resnet", "in_chans": 1},
    "fused norm": {"backbone": "test_efficientnet", "in_chans": 1},
    "no norm": {
        "backbone": "test_vit",
        "in_chans": 1,
        "options": {"img_size": 32, "dynamic_img_size": True},
    },
}
TRANSFORMERS_ONLY = {"MAE"}
VAE = {
    **{"image_size": 32, "num_layers": 2, "num_tokens": 12, "codebook_dim": 8},
    **{"hidden_dim": 8, "num_resnet_blocks": 1, "channels": 1},
}
SMALL = {
    "VAE": {**VAE, "kl_div_loss_weight": 1e-3},
    "DALLE": {
        "vae": VAE,
        "dalle": {
            **{"dim": 16, "depth": 2, "heads": 2, "dim_head": 6, "text_dropout": 0.3},
            **{"num_text_tokens": 500, "text_seq_len": 9, "attn_types": ["full", "axial_row"]},
        },
    },
    "SimCLR": {"projection": {"projection_dim": 8}, "loss": {"tau": 0.2}},
    "DINO": {"head": {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 24}},
    "MAE": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "Classifier": {"classes": 3},
    "Distillation": {"classes": 3, "loss": {"temperature": 2.0, "alpha": 0.6}},
    "GLoRIA": {"image_size": None, "loss": {"duplicates": "mask"}},
}
TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 96,
    "hidden_dropout_prob": 0.0,  # drawn per process and chunk
    "attention_probs_dropout_prob": 0.0,
}


def reads_reports(name):
    return "input_ids" in find(name, folder="models").takes


def reports(n):
    """What paired models take of n reports of different length; some are alike."""
    generator = torch.Generator().manual_seed(4)
    length = torch.arange(n) % 5 + 4
    mask = (torch.arange(9) < length[:, None]).long()
    ids = torch.randint(5, 30, (n, 9), generator=generator) * mask
    words = torch.arange(9).expand(n, 9) - (torch.arange(9) > 3).long()  # two pieces make one
    groups = torch.stack([torch.arange(n) % 7, torch.arange(n) % 9, torch.arange(n)], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "words": torch.where(mask.bool(), words, -1),
        "groups": groups,
    }


def node_of(name, encoder, **more):
    """The model section of a config; with the encoder "no norm" no part of it has batch norm."""
    keys = schema(find(name, folder="models"))
    cnn = {"cnn": {"proto": "CNN", **ENCODERS[encoder]}} if "cnn" in keys else {}
    node = {"proto": name, **cnn}
    heads = {"projector", "predictor"} & set(keys)
    plain = {"widths": [8], "last_norm": "none"}
    for head in heads:
        node[head] = plain if encoder == "no norm" else {"widths": [16, 8]}
    if "encoder" in keys:
        node["encoder"] = TEXT
        if "projection" in keys:
            node["projection"] = {"projection_dim": 8}
            node["loss"] = {"duplicates": "positives"}
    if name == "Distillation":
        node["teacher"] = {**node_of("Classifier", encoder), "task": "classes"}
    return {**node, **SMALL.get(name, {}), **more}


def of_one_encoder(name):
    """True for models that take no convolutional network from outside."""
    return name in TRANSFORMERS_ONLY or "cnn" not in schema(find(name, folder="models"))


def cases(names=None):
    """(name, encoder) of every model and each kind of encoder it takes."""
    return [
        (name, encoder)
        for name in names or protos("models")
        for encoder in ENCODERS
        if encoder == "no norm" or not of_one_encoder(name)
    ]
