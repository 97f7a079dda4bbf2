"""Writes the report of a built-in study and the labels that a reader of that report would give.

Both come from the same facts: a positive label (1) has an affirming sentence, 0 a negated one, -1 a
hedged one, and a blank (None) label is not mentioned at all. Sides, zones, grades and centimetres
are those of the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .phantom_draw import Finding

# The 14 columns of the CheXpert family; those without a drawing are never affirmed.
LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
OPACITIES = ("Consolidation", "Atelectasis")
# finding -> how reports name it
NOUNS = {
    "Pleural Effusion": "pleural effusion",
    "Pneumothorax": "pneumothorax",
    "Consolidation": "consolidation",
    "Lung Lesion": "nodule",
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Edema": "pulmonary edema",
    "Pneumonia": "pneumonia",
    "Fracture": "fracture",
}
OVERCALLED = ("Pneumothorax", "Pleural Effusion", "Consolidation")  # hedged though absent, at times
UNCOUNTED = ("consolidation", "atelectasis", "cardiomegaly")  # take no article
REDACTED = ("XXXX", "___")
NORMAL = ("No acute cardiopulmonary abnormality", "No acute disease", "Normal chest")
Labels = dict[str, int | None]


def grade(finding: Finding) -> str:
    words = (
        ("mild", "moderate", "severe")
        if finding.name == "Cardiomegaly"
        else ("small", "moderate", "large")
    )
    return words[min(int(finding.severity * 3), 2)]


def zone(finding: Finding) -> str:
    """Third of the lung the centre lies in."""
    return "upper" if finding.y < -0.28 else "mid" if finding.y < 0.08 else "lower"


def phrase(finding: Finding) -> str:
    """A noun phrase, such as "1.5 cm nodule in the left upper lung"."""
    if finding.name == "Lung Lesion":
        return f"{finding.size_mm / 10:.1f} cm nodule in the {finding.side} {zone(finding)} lung"
    if finding.name in OPACITIES:
        return f"{grade(finding)} {NOUNS[finding.name]} in the {finding.side} {zone(finding)} lung"
    return " ".join(filter(None, (grade(finding), finding.side, NOUNS[finding.name])))


def measure(finding: Finding, thorax_mm: float) -> str:
    """A trailing clause with the size, empty where the phrase already has it."""
    centimetres = f"{finding.size_mm / 10:.1f} cm"
    return {
        "Pleural Effusion": f", {centimetres} deep",
        "Pneumothorax": f" with {centimetres} of apical separation",
        "Cardiomegaly": f" with a cardiothoracic ratio of {finding.size_mm / thorax_mm:.2f}",
        "Consolidation": f" measuring {centimetres}",
    }.get(finding.name, "")


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def affirm(finding: Finding, thorax_mm: float, rng: np.random.Generator) -> str:
    text = phrase(finding) + (measure(finding, thorax_mm) if rng.random() < 0.5 else "")
    return pick(rng, (f"There is {article(text)}{text}.", f"{capital(text)}."))


def hedge(text: str, rng: np.random.Generator) -> str:
    return pick(
        rng,
        (
            f"Possible {text}.",
            f"{capital(text)} cannot be excluded.",
            f"There may be {article(text)}{text}.",
        ),
    )


def article(text: str) -> str:
    return "" if any(noun in text for noun in UNCOUNTED) else "a "


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def mention(findings: Sequence[Finding], rng: np.random.Generator) -> Labels:
    """Draws what the report says of each label, within what the picture allows."""
    labels: Labels = dict.fromkeys(LABELS)
    for name in NOUNS:
        here = [f.severity for f in findings if f.name == name]
        coin = rng.random()
        if not here:
            hedged = name in OVERCALLED and coin > 0.97
            labels[name] = -1 if hedged else 0 if coin < 0.55 else None
        elif max(here) < 0.4 and coin < 0.35:
            labels[name] = -1
        elif name != findings[0].name and coin > 0.9:
            labels[name] = None  # readers leave out minor findings
        else:
            labels[name] = 1
    if labels["Consolidation"] == 1 and rng.random() < 0.3:
        labels["Pneumonia"] = -1
    if rng.random() < 0.3:
        labels["Enlarged Cardiomediastinum"] = 0
    return labels


def complete(
    labels: Labels, findings: Sequence[Finding], device: str, rng: np.random.Generator
) -> Labels:
    """Fills in the labels that follow from others: Lung Opacity, Support Devices, No Finding."""
    said = [labels[name] for name in OPACITIES if labels[name] in (1, -1)]
    if said:
        labels["Lung Opacity"] = max(int(v) for v in said if v is not None)
    elif not any(f.name in (*OPACITIES, "Lung Lesion") for f in findings) and rng.random() < 0.4:
        labels["Lung Opacity"] = 0
    labels["Support Devices"] = 1 if device else (0 if rng.random() < 0.15 else None)
    others = [v for name, v in labels.items() if name != "Support Devices"]
    labels["No Finding"] = 1 if not findings and all(v in (0, None) for v in others) else None
    return labels


def negations(labels: Labels, rng: np.random.Generator) -> list[str]:
    absent = [NOUNS[n] for n in NOUNS if labels[n] == 0 and n != "Cardiomegaly"]
    rng.shuffle(absent)
    out = []
    while absent:
        take, absent = absent[:3], absent[3:]
        listed = take[0] if len(take) == 1 else ", ".join(take[:-1]) + " or " + take[-1]
        out.append(
            pick(rng, (f"No {listed}.", f"There is no {listed}.", f"No evidence of {listed}."))
        )
    if labels["Cardiomegaly"] == 0:
        out.append(
            pick(rng, ("Heart size is normal.", "The heart is not enlarged.", "No cardiomegaly."))
        )
    if labels["Enlarged Cardiomediastinum"] == 0:
        out.append("The mediastinum is not widened.")
    if labels["Lung Opacity"] == 0:
        out.append(pick(rng, ("The lungs are clear.", "No lung opacity.")))
    if labels["Support Devices"] == 0:
        out.append("No support devices.")
    return out


def change(now: Finding, before: Sequence[Finding]) -> str:
    """Trend since the earlier study in one word, empty when the finding was not there."""
    old = [f for f in before if (f.name, f.side) == (now.name, now.side)]
    if not old:
        return ""
    step = now.severity - old[0].severity
    return "unchanged" if abs(step) < 0.1 else "increased" if step > 0 else "decreased"


def write_report(
    findings: Sequence[Finding],
    before: Sequence[Finding] | None,
    device: str,
    thorax_mm: float,
    rng: np.random.Generator,
) -> tuple[str, Labels]:
    """One line of text with FINDINGS: and IMPRESSION: sections, and its labels.

    Args:
        findings: what the films of the study show, the dominant finding first.
        before: findings of the patient's previous study, None for the first one.
        device: name of the device on the films, "" for none.
        thorax_mm: inner width of the rib cage, for the cardiothoracic ratio.
    """
    labels = complete(mention(findings, rng), findings, device, rng)
    body, summary = positives(findings, before or (), labels, thorax_mm, rng)
    if device:
        body.append(pick(rng, (f"{capital(device)} in place.", f"The {device} is unremarkable.")))
    body += negations(labels, rng)
    if rng.random() < 0.15:
        body.append(f"Findings discussed with Dr. {pick(rng, REDACTED)}.")
    closing = ". ".join(f"{i}. {s}" if len(summary) > 1 else s for i, s in enumerate(summary, 1))
    if not closing and -1 in labels.values():
        closing = "No definite acute abnormality"
    closing = closing or pick(rng, NORMAL)
    head = f"COMPARISON: {'None' if before is None else pick(rng, REDACTED)}. "
    findings_text = " ".join(body) or "No acute abnormality."
    start = head if rng.random() < 0.4 else ""
    return f"{start}FINDINGS: {findings_text} IMPRESSION: {closing}.", labels


def positives(
    findings: Sequence[Finding],
    before: Sequence[Finding],
    labels: Labels,
    thorax_mm: float,
    rng: np.random.Generator,
) -> tuple[list[str], list[str]]:
    """Sentences for the labels 1 and -1, and the lines of the impression."""
    body: list[str] = []
    summary: list[str] = []
    for f in findings:
        if labels[f.name] == 1:
            body.append(affirm(f, thorax_mm, rng))
            if f.name == "Consolidation" and labels["Pneumonia"] == -1:
                body.append("This may represent pneumonia.")
            trend = change(f, before)
            summary.append(
                capital(phrase(f)) + (f", {trend} since the prior study" if trend else "")
            )
        elif labels[f.name] == -1:
            body.append(hedge(phrase(f), rng))
            summary.append(f"Possible {phrase(f)}")
    for name in NOUNS:
        if labels[name] == -1 and all(f.name != name for f in findings) and name != "Pneumonia":
            body.append(hedge(f"small {pick(rng, ('left', 'right'))} {NOUNS[name]}", rng))
    return body, summary
