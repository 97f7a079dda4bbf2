"""Pure functions on arrays: what a representation is worth, and how sure we are of it.

Shape letters: N reference rows, M scored rows, D features, C classes or findings, K neighbours, R
draws. Labels are (N,) integers for one class per row, or (N, C) in {0, 1, nan} for findings, nan
meaning unknown.
"""

from vilmedic_ssl.metrics.bootstrap import bootstrap, resample
from vilmedic_ssl.metrics.calibration import brier, ece, reliability
from vilmedic_ssl.metrics.classify import accuracy, balanced_accuracy
from vilmedic_ssl.metrics.contrast import contrastive_accuracy
from vilmedic_ssl.metrics.grounding import grounding_cnr
from vilmedic_ssl.metrics.health import (
    alignment,
    effective_rank,
    feature_std,
    knn_purity,
    silhouette,
    uniformity,
)
from vilmedic_ssl.metrics.knn import knn, knn_scores
from vilmedic_ssl.metrics.probe import linear_probe
from vilmedic_ssl.metrics.ranking import auprc, auroc, columns, macro, one_hot
from vilmedic_ssl.metrics.retrieval import retrieval

__all__ = [
    "accuracy",
    "alignment",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "bootstrap",
    "brier",
    "columns",
    "contrastive_accuracy",
    "ece",
    "effective_rank",
    "feature_std",
    "grounding_cnr",
    "knn",
    "knn_purity",
    "knn_scores",
    "linear_probe",
    "macro",
    "one_hot",
    "reliability",
    "resample",
    "retrieval",
    "silhouette",
    "uniformity",
]
