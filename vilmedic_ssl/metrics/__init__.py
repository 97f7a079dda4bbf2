"""Pure functions on arrays: what a representation is worth, and how sure we are of it.

Shape letters: N reference rows, M scored rows, D features, C classes or findings, K neighbours, R
draws. Labels are (N,) integers for one class per row, -1 meaning unlabelled, or (N, C) in
{0, 1, nan} for findings, nan meaning unknown. Scores leave out what is unlabelled or unknown.
"""

from vilmedic_ssl.metrics.arrays import labelled
from vilmedic_ssl.metrics.bootstrap import bootstrap, resample
from vilmedic_ssl.metrics.calibration import brier, ece, reliability
from vilmedic_ssl.metrics.classify import (
    PerClass,
    Task,
    accuracy,
    balanced_accuracy,
    confusion,
    medmnist,
    per_class,
    per_finding,
    prevalence,
    top_k,
)
from vilmedic_ssl.metrics.codes import code_perplexity, codebook_usage
from vilmedic_ssl.metrics.contrast import contrastive_accuracy
from vilmedic_ssl.metrics.grounding import energy_inside, grounding_cnr, miou, pointing_game
from vilmedic_ssl.metrics.health import (
    alignment,
    effective_rank,
    feature_std,
    knn_purity,
    knn_purity_chance,
    modality_gap,
    silhouette,
    uniformity,
)
from vilmedic_ssl.metrics.knn import knn, knn_accuracy, knn_defined, knn_scores
from vilmedic_ssl.metrics.linear_head import linear_head
from vilmedic_ssl.metrics.probe import LinearProbe, fit_probe, linear_probe
from vilmedic_ssl.metrics.ranking import auprc, auroc, columns, macro, one_hot
from vilmedic_ssl.metrics.retrieval import (
    merged,
    pair_ranks,
    precision_at,
    recall_by_chance,
    retrieval,
)
from vilmedic_ssl.metrics.zero_shot import fit_temperature, right_side, standardise, two_sided

__all__ = [
    "LinearProbe",
    "PerClass",
    "Task",
    "accuracy",
    "alignment",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "bootstrap",
    "brier",
    "code_perplexity",
    "codebook_usage",
    "columns",
    "confusion",
    "contrastive_accuracy",
    "ece",
    "effective_rank",
    "energy_inside",
    "feature_std",
    "fit_probe",
    "fit_temperature",
    "grounding_cnr",
    "knn",
    "knn_accuracy",
    "knn_defined",
    "knn_purity",
    "knn_purity_chance",
    "knn_scores",
    "labelled",
    "linear_head",
    "linear_probe",
    "macro",
    "medmnist",
    "miou",
    "merged",
    "modality_gap",
    "one_hot",
    "pair_ranks",
    "per_class",
    "per_finding",
    "pointing_game",
    "precision_at",
    "prevalence",
    "recall_by_chance",
    "reliability",
    "resample",
    "retrieval",
    "right_side",
    "silhouette",
    "standardise",
    "top_k",
    "two_sided",
    "uniformity",
]
