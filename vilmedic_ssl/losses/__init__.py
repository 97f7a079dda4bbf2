"""Losses as pure functions of this process's rows; each returns the loss of the whole global
batch.
"""

from vilmedic_ssl.losses.contrastive import nt_xent

__all__ = ["nt_xent"]
