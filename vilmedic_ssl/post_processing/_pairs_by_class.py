"""Retrieval by class: how many of the first k images show what the query shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics import Support
from vilmedic_ssl.metrics.arrays import unit_rows
from vilmedic_ssl.post_processing._compare import side_by_side
from vilmedic_ssl.post_processing._numbers import warn_of_intervals
from vilmedic_ssl.post_processing._pairs import Reference, Source
from vilmedic_ssl.post_processing._prompts import Prompts
from vilmedic_ssl.post_processing._shared import Features, Value, rows_of
from vilmedic_ssl.post_processing._zero_shot_table import chosen_labels, hot


@dataclass(frozen=True)
class Queries:
    """Q queries of one kind.

    Attributes:
        way: "image_to_image", say.  c_Q: class of each.  right_QC: candidates with that class.
        allowed_QC: candidates that count: known labels, other patients.
        groups: patient of each query; None = queries are no patients', so no interval.
        similarity_QC: by source.
    """

    way: str
    c_Q: np.ndarray
    right_QC: np.ndarray
    allowed_QC: np.ndarray
    groups: np.ndarray | None
    similarity_QC: dict[Source, np.ndarray]


def by_class_table(
    features: Features,
    split: str,
    references: Sequence[Reference],
    ks: Sequence[int],
    prompts: Prompts | None,
    *,
    draws: int,
) -> dict[str, Value]:
    """P@k of one split: images, their reports, and where there are any prompts look for images of
    the same class; images of the query's own patient are no candidates.

    Raises:
        UserError: no labels, or the model reads no text.
    """
    from vilmedic_ssl.executors.pairs import reader_of

    part = features.get(split)
    names = list(part.label_names if prompts is None else prompts.positive)
    hot_NC = hot(chosen_labels(part, names, "retrieval"), len(names))
    sources: list[Source] = ["model", *references]
    readers = {source: reader_of(features, "retrieval", source) for source in sources}
    image = {s: unit_rows(rows_of(features.get(split, s), "visual")) for s in sources}
    reports = readers["model"].reports(split)
    texts = [text for text in dict.fromkeys(reports) if text.strip()]
    number = {text: m for m, text in enumerate(texts)}
    patient_N = np.array(part.ids if part.patients is None else part.patients)
    row_Q, c_Q = np.nonzero(hot_NC == 1)  # an image asks once for every finding it has
    said_Q = np.array([reports[row] in number for row in row_Q], dtype=bool)
    place_Q = [number[reports[row]] for row in row_Q[said_Q]]
    of_text = {s: readers[s].similarity(split, texts).T[place_Q] for s in sources}
    right_QN, known_QN = hot_NC.T[c_Q] == 1, ~np.isnan(hot_NC.T[c_Q])
    allowed_QN = known_QN & (patient_N[row_Q, None] != patient_N[None])
    queries = [
        Queries(
            "image_to_image",
            c_Q,
            right_QN,
            allowed_QN,
            patient_N[row_Q],
            {s: (x @ x.T)[row_Q] for s, x in image.items()},
        ),
        Queries(
            "report_to_image",
            c_Q[said_Q],
            right_QN[said_Q],
            allowed_QN[said_Q],
            patient_N[row_Q][said_Q],
            of_text,
        ),
    ]
    if prompts is not None:
        asked = prompts.texts()
        number = {text: m for m, text in enumerate(asked)}
        class_Q = [c for c, every in enumerate(prompts.positive.values()) for _ in every]
        place = [number[text] for every in prompts.positive.values() for text in every]
        queries.append(
            Queries(
                "prompt_to_image",
                np.array(class_Q),
                hot_NC.T[class_Q] == 1,
                ~np.isnan(hot_NC.T[class_Q]),
                None,
                {s: readers[s].similarity(split, asked).T[place] for s in sources},
            )
        )
    table: dict[str, Value] = {}
    for some in queries:
        table |= precision_table(
            f"{split}/retrieval_classes", some, names, ks, draws=draws, seed=features.seed
        )
    return table


def precision_table(
    where: str, queries: Queries, names: Sequence[str], ks: Sequence[int], *, draws: int, seed: int
) -> dict[str, Value]:
    """P@k, mean over classes of the mean over their queries, P@k of every class, and chance: the
    share of right candidates.

    Raises:
        UserError: there is no query.
    """
    if not len(queries.c_Q):
        raise UserError(f"{where}: no image has one of the classes {', '.join(names)}")
    count_Q = queries.allowed_QC.sum(axis=1)
    small = [k for k in ks if not (count_Q >= k).any()]
    if small:
        most = int(count_Q.max())
        warn(
            f"{where}: there are {most} candidates, so there is no P@{', P@'.join(map(str, small))}"
        )
    ks = [k for k in ks if k not in small]
    if not ks:
        return {}
    share = [
        np.stack(
            [
                metrics.precision_at(cos_QC, queries.right_QC, k=k, allowed_QC=queries.allowed_QC)
                for k in ks
            ],
            axis=1,
        )
        for cos_QC in queries.similarity_QC.values()
    ]
    seen = np.unique(queries.c_Q)

    whole_CK = np.array([_mean(share[0][queries.c_Q == c]) for c in seen])
    counted_CK = ~np.isnan(whole_CK)  # the classes of the mean, the same ones in every draw

    def numbers(c_Q: np.ndarray, share_QK: np.ndarray) -> np.ndarray:
        of_class = np.array([_mean(share_QK[c_Q == c]) for c in seen])
        with np.errstate(invalid="ignore"):
            mean_K = np.where(counted_CK, of_class, 0).sum(axis=0) / counted_CK.sum(axis=0)
        return np.concatenate([mean_K, of_class.T.ravel()])

    keys: dict[str, Any] = {
        "groups": queries.groups,
        "draws": 0 if queries.groups is None else draws,
        "seed": seed,
    }
    metric = [f"{queries.way}/P@{k}" for k in ks]
    metric += [f"{queries.way}/P@{k}/{names[c]}" for k in ks for c in seen]
    references = [source for source in queries.similarity_QC if source != "model"]
    parts = [[(queries.c_Q == c) & ~np.isnan(share[0][:, k]) for c in seen] for k in range(len(ks))]
    means = [Support.of(of_k, queries.groups) for of_k in parts]
    single = [Support.of([one], queries.groups) for of_k in parts for one in of_k]
    keys["support"] = Support.joined([*means, *single])
    table, drawn = side_by_side(where, metric, numbers, [queries.c_Q], share, references, **keys)
    warn_of_intervals(f"retrieval, {queries.way}", where.split("/")[0], drawn)
    with np.errstate(invalid="ignore"):
        share_Q1 = ((queries.right_QC & queries.allowed_QC).sum(axis=1) / count_Q)[:, None]
    chance_C1 = np.array([_mean(share_Q1[queries.c_Q == c]) for c in seen])
    table[f"{where}/{queries.way}/chance_P"] = float(_mean(chance_C1)[0])
    return table


def _mean(rows_QK: np.ndarray) -> np.ndarray:
    """Over the rows where a number is defined; nan where it is nowhere."""
    known_QK = ~np.isnan(rows_QK)
    with np.errstate(invalid="ignore"):
        return np.where(known_QK, rows_QK, 0).sum(axis=0) / known_QK.sum(axis=0)
