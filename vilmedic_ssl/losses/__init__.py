"""Losses as pure functions of this process's rows; each returns the loss of the whole global
batch.
"""

from vilmedic_ssl.losses.contrastive import moco_v3, nt_xent
from vilmedic_ssl.losses.distillation import distillation
from vilmedic_ssl.losses.labels import label_entropy, ordinal_entropy
from vilmedic_ssl.losses.local_alignment import gloria
from vilmedic_ssl.losses.pairs import convirt, info_nce, sigmoid
from vilmedic_ssl.losses.redundancy import barlow_twins, vicreg
from vilmedic_ssl.losses.regression import byol, sim_siam
from vilmedic_ssl.losses.self_distillation import dino

__all__ = [
    "barlow_twins",
    "byol",
    "convirt",
    "dino",
    "distillation",
    "gloria",
    "info_nce",
    "label_entropy",
    "moco_v3",
    "nt_xent",
    "ordinal_entropy",
    "sigmoid",
    "sim_siam",
    "vicreg",
]
