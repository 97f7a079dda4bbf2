"""Cleaning, sections, sentences, negations, sides and comparisons of reports."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilmedic_ssl.data.download import download
from vilmedic_ssl.data.phantom_text import NOUNS, write_report
from vilmedic_ssl.data.recipes import indiana
from vilmedic_ssl.data.reports import (
    DESTROYS,
    PROCESSING,
    clean,
    has_side,
    mirror,
    negated,
    sections,
    select,
    sentences,
)
from vilmedic_ssl.errors import ConfigError

ORACLE = Path(__file__).parent / "oracles/report_processing.npz"
# Pieces that reports are made of, and characters that break cleaners.
PIECES = [
    *("No", "pneumothorax", "left", "Right", "RUL", "effusion", "unchanged", "stable", "since the"),
    *("prior study", "1.5 cm", "< 3 mm", "10.25", "No. 3", "2.", "XXXX", "___", "Dr.", "but"),
    *("is not seen", "cannot be excluded", "without", "heart", ".", ",", ";", ":", "\n", "\n\n"),
    *("5 ", " 0", "½", "10³", "\u200b", "\x00", "\u00a0", "–", "—", "“", "ﬁ", "１．５", "㎝", "…"),
    *("interval change", "again seen", "FINDINGS:", "IMPRESSION", "left in place", "e\u0301"),
    *("vs.", "R lung", "sin cambios", "no se observa", "derrame", "izq.", "derecha"),
    "respecto a estudio previo",
]  # fmt: skip
reports = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=10).map("".join),
)
languages = st.sampled_from(["en", "es"])


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:[.,/]\d+)*|[½³]", text)


def denied(text: str, language: str = "en") -> list[str]:
    return [text[a:b] for a, b in negated(text, language)]


def dropped(text: str, language: str = "en") -> str:
    return clean(text, language=language, drop_priors=True)


# Cleaning ---------------------------------------------------------------------------------------


@given(reports)
@settings(max_examples=150, deadline=None)
def test_clean_keeps_numbers_and_is_done_after_once(text: str) -> None:
    once = clean(text)
    assert numbers(once) == numbers(text)
    assert clean(once) == once
    assert once == " ".join(once.split()) and "\x00" not in once and "____" not in once


@given(reports, languages)
@settings(max_examples=150, deadline=None)
def test_dropping_comparisons_invents_nothing(text: str, language: str) -> None:
    """No number comes in, and none but a list number goes; no denial becomes a statement."""
    before, after = clean(text), dropped(text, language)
    kept, left = iter(numbers(before)), numbers(after)
    assert all(number in kept for number in left)  # in order
    measured = [n for n in re.findall(r"\d+\.\d+|(?<=< )\d+", before)]
    assert [n for n in re.findall(r"\d+\.\d+|(?<=< )\d+", after)] == measured
    said = {word for part in denied(before, language) for word in part.lower().split()}
    for word in ("pneumothorax", "effusion", "derrame", "heart"):
        stands = any(word in part.lower() for part in denied(after, language))
        assert not stands or any(word in part for part in said)


def test_clean_writes_what_was_meant() -> None:
    text = (
        "½ cm – “x”…\t10³ m²  ﬁne 2\u00ad3 pneu\u00admo \n_____ XXXX\u00a0<5 mm\x00ok\r\nLeft—right"
    )
    assert clean(text) == '½ cm - "x"... 10³ m² fine 2 3 pneumo ___ XXXX <5 mm ok Left - right'
    assert clean("above\n________________\nbelow") == "above below"
    assert clean("Dr. No. 3, e.g. 9 a.m., vs. approx. 2.5 cm; 1. A 2. B") == (
        "Dr. No. 3, e.g. 9 a.m., vs. approx. 2.5 cm; 1. A 2. B"
    )
    with pytest.raises(ConfigError, match="'fr' is not one of 'en', 'es'"):
        clean("", language="fr")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Small left effusion, unchanged since the prior study.", "Small left effusion."),
        ("1.5 cm nodule, increased since the prior study.", "1.5 cm nodule."),
        ("No interval change.", ""),
        ("1. Clear. 2. No change compared to ___. 3. Nodule.", "1. Clear. 3. Nodule."),
        ("stable cardiomegaly", "cardiomegaly"),
        ("Stable 5 mm nodule.", "5 mm nodule."),
        ("A mass is again seen in the apex.", "A mass is seen in the apex."),
        ("Interval increase in size of the effusion.", "The effusion."),
        ("Interval resolution of the effusion.", "Resolution of the effusion."),
        ("Compared to prior exam, there is edema.", "There is edema."),
        ("There is no change in the right scar.", "The right scar."),
        ("No new effusion since the prior study.", "No new effusion."),
        ("No edema or significant interval change.", "No edema."),
        ("Show an unchanged heart.", "Show a heart."),
        ("The heart is enlarged but stable.", "The heart is enlarged."),
        ("The cardiac silhouette is unchanged.", ""),
        # what only looks like a comparison
        ("Clips from prior cholecystectomy.", "Clips from prior cholecystectomy."),
        ("This was not present on the previous study.", None),
        ("Effusion, unchanged since 2010.", None),
        ("Compared to the study of 3/4/2012 larger.", None),
        ("Hemodynamically stable.", None),
        ("Recommend 3 month interval followup.", None),
    ],
)
def test_comparisons_go_and_findings_stay(text: str, left: str | None) -> None:
    assert dropped(text) == (text if left is None else left)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Cardiomegalia, sin cambios respecto a la radiografía previa.", "Cardiomegalia."),
        ("Cardiomegalia estable.", "Cardiomegalia."),
        ("No se observan cambios significativos.", ""),
        ("Derrame de 3 mm, sin cambios con respecto a ___.", "Derrame de 3 mm."),
        ("Columna sin cambios degenerativos.", "Columna sin cambios degenerativos."),
        ("Sin derrame respecto a estudio previo.", "Sin derrame."),
    ],
)
def test_spanish_comparisons(text: str, left: str) -> None:
    assert dropped(text, "es") == left


# Sections and sentences -------------------------------------------------------------------------

MIMIC = """                                 FINAL REPORT
 ADDENDUM  Discussed with Dr. ___.
 ______________________________________________________________________________
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old

 FINDINGS:

 Heart normal: see comparison.
 Nodule of 1.5 cm.

 IMPRESSION:

 1. Nodule.
 2. No effusion.
"""


def test_sections_of_reports_as_they_come() -> None:
    assert sections(MIMIC) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old",
        "findings": "Heart normal: see comparison.\n Nodule of 1.5 cm.",
        "impression": "1. Nodule.\n 2. No effusion.",
        "addendum": "Discussed with Dr. ___.",
    }
    line = "COMPARISON: None. FINDINGS: Small nodule. IMPRESSION: 1. Nodule. 2. Clear."
    assert list(sections(line).values()) == ["None.", "Small nodule.", "1. Nodule. 2. Clear."]
    assert sections("Clear. Impression: normal") == {"": "Clear.", "impression": "normal"}
    assert sections("FINDINGS\nClear.\nFINDINGS: Nodule.") == {"findings": "Clear.\n\nNodule."}
    assert sections("no headings") == {"": "no headings"} and sections("") == {"": ""}
    assert sections("HALLAZGOS: a. IMPRESIÓN: b. Técnica: PA\nCONCLUSION: c") == {
        "findings": "a.",
        "impression": "b.",
        "technique": "PA",
        "conclusion": "c",
    }


def test_asked_sections_fall_back_to_the_last_paragraph() -> None:
    assert select(MIMIC, ["impression", "findings"]).startswith("1. Nodule.")
    assert select("Lungs clear.\n\nNormal chest.", ["impression"]) == "Normal chest."
    assert select("EXAM: PA\n\nNormal chest.", ["findings"]) == "Normal chest."
    assert select("Normal chest.", ["findings"]) == "Normal chest."
    assert select("FINDINGS: Clear.", ["impression"]) == ""
    assert select("INDICATION: cough", ["findings"]) == ""


def test_sentences_of_the_built_in_reports_have_their_sections() -> None:
    rng = np.random.default_rng(0)
    text, _ = write_report([], None, "", 300.0, rng)
    assert {"findings", "impression"} <= set(sections(text))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1. Small effusion. 2. No pneumothorax.", ["1. Small effusion.", "2. No pneumothorax."]),
        ("Of 1.5 cm. Seen by Dr. A. Smith at 9 a.m. today.", None),
        ("Edema vs. pneumonia, e.g. viral. No. 3 tube.", None),
        ("Dr. XXXX at XXXX p.m. XXXX/XXXX. Clear.", None),
        ("3 mm. in size. no effusion. heart normal!", None),
        ("Clear lung XXXX.In the left. volume loss. .", None),
        ("one\ntwo. three\n\nfour\n1. five\n2. six", None),
        ("Nódulo izq. de 3 mm. Dra. Ruiz, p. ej. hoy.", None),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str] | None) -> None:
    told = {
        "Of": ["Of 1.5 cm.", "Seen by Dr. A. Smith at 9 a.m. today."],
        "Edema": ["Edema vs. pneumonia, e.g. viral.", "No. 3 tube."],
        "Dr.": ["Dr. XXXX at XXXX p.m. XXXX/XXXX.", "Clear."],
        "3": ["3 mm. in size.", "no effusion.", "heart normal!"],
        "Clear": ["Clear lung XXXX.", "In the left.", "volume loss. ."],
        "one": ["one two.", "three", "four", "1. five", "2. six"],
        "Nódulo": ["Nódulo izq. de 3 mm.", "Dra. Ruiz, p. ej. hoy."],
    }
    assert sentences(text) == (told[text.split()[0]] if parts is None else parts)


@given(reports)
@settings(max_examples=100, deadline=None)
def test_sentences_are_all_of_the_text(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert sorted(re.findall(r"\d+\.\d+", " | ".join(sentences(text)))) == sorted(
        re.findall(r"\d+\.\d+", text)
    )


# Negation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("No pleural effusion or pneumothorax.", ["pleural effusion or pneumothorax"]),
        ("No focal opacity, effusion, or edema. Nodule.", ["focal opacity, effusion, or edema"]),
        ("No evidence of edema, but there is a nodule.", ["edema"]),
        ("The heart is not enlarged. Lungs clear without edema", ["enlarged", "edema"]),
        ("Pneumothorax is excluded.", ["Pneumothorax"]),
        ("The heart is large, effusion is not seen.", ["effusion"]),
        ("Pneumothorax cannot be excluded. No. 3 tube.", []),
        ("No change in the mass. No increase. Not only edema.", []),
        ("No effusion and no edema; nodule 1.5 cm.", ["effusion", "edema"]),
        ("", []),
    ],
)
def test_negations(text: str, parts: list[str]) -> None:
    assert denied(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("No se observa derrame pleural. Masa.", ["derrame pleural"]),
        ("Sin derrame ni edema, pero con masa.", ["derrame", "edema"]),
        ("Ausencia de nódulos. Se descarta neumotórax.", ["nódulos", "neumotórax"]),
        ("Neumotórax descartado. Derrame no se observa.", ["Neumotórax", "Derrame"]),
        ("No se puede descartar neumonía. Sin cambios.", []),
        ("Sin cambios degenerativos.", ["cambios degenerativos"]),
    ],
)
def test_spanish_negations(text: str, parts: list[str]) -> None:
    assert denied(text, "es") == parts


@given(reports, languages)
@settings(max_examples=100, deadline=None)
def test_negated_spans_are_ordered_and_apart(text: str, language: str) -> None:
    found = negated(text, language)
    flat = [end for span in found for end in span]
    assert flat == sorted(flat) and all(0 <= a < b <= len(text) for a, b in found)


def test_negations_of_the_built_in_reports_are_their_labels(phantom: Path) -> None:
    """Every label 0 is a denied noun, and no label 1 or -1 is; also without comparisons."""
    with (phantom / "manifest.csv").open() as file:
        rows = {row["report"]: row for row in csv.DictReader(file)}
    asked = set()
    for report, row in rows.items():
        assert set(sections(report)) <= {"findings", "impression", "comparison"}
        body = sections(report)["findings"]
        for text in (body, dropped(body)):
            parts = " | ".join(denied(text)).lower()
            for name, noun in NOUNS.items():
                if name != "Cardiomegaly" and row[name]:  # "heart size is normal" denies it too
                    assert (noun in parts) == (row[name] == "0"), (noun, text)
                    asked.add(row[name])
    assert asked == {"0", "1", "-1"}
    assert not any("since the prior study" in dropped(report) for report in rows)
    assert any("since the prior study" in report for report in rows)


# Sides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left-sided, leftward; LEFT lung, R lung.", "Right-sided, rightward; RIGHT lung, L lung."),
        ("Right-to-left shift", "Left-to-right shift"),
        ("RUL and LLL, R > L, (R), L 5th rib", "LUL and RLL, L > R, (L), R 5th rib"),
        ("Dextroscoliosis. Was left lower.", "Levoscoliosis. Was right lower."),
        ("Tube on the left in place.", "Tube on the right in place."),
    ],
)
def test_mirrored(text: str, mirrored: str) -> None:
    assert mirror(text) == mirrored and has_side(text)


@pytest.mark.parametrize(
    "text",
    [
        "Bilateral effusion. L1 fracture. R/O mass. Upright. cleft",
        "The tube was left in place. The patient left the room. She left.",
        "Call right away; at a right angle; left against medical advice.",
    ],
)
def test_no_side(text: str) -> None:
    assert mirror(text) == text and not has_side(text)


def test_spanish_sides() -> None:
    text = "Derrame IZQUIERDO, base Derecha, izq. y dcha., LSD, dextroescoliosis; bilateral"
    assert mirror(text, "es") == (
        "Derrame DERECHO, base Izquierda, der. y izqda., LSI, levoescoliosis; bilateral"
    )


@given(reports, languages)
@settings(max_examples=200, deadline=None)
def test_mirrored_twice_is_the_text(text: str, language: str) -> None:
    assert mirror(mirror(text, language), language) == text
    assert numbers(mirror(text, language)) == numbers(text)


# Cleaners of older systems ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("r2gen", "r2gen_clean_report"),
        ("ifcc", "ifcc_clean_report"),
        ("gloria", "gloria_clean_report_chexpert"),
        ("rouge", "rouge"),
    ],
)
def test_cleaners_of_older_systems(name: str, key: str) -> None:
    with np.load(ORACLE) as oracle:
        expected = oracle[key].tolist()
        assert [PROCESSING[name](text) for text in oracle["inputs"].tolist()] == expected
    assert PROCESSING[key] is PROCESSING[name] and name in DESTROYS and key in DESTROYS
    assert "2.5 cm" in DESTROYS[name] and "2.5 cm" not in PROCESSING[name]("A 2.5 cm mass.")


def test_the_default_and_none_destroy_nothing() -> None:
    assert not {"clean", "none"} & set(DESTROYS)
    assert PROCESSING["none"](" As  it\nis") == " As  it\nis"


# Real reports -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.network
def test_real_reports_keep_their_numbers_and_their_twins(tmp_path: Path) -> None:
    """Duplicate statistics of the collection are the same before and after cleaning."""
    (folder,) = download("indiana-reports", root=tmp_path)
    rows = list(csv.DictReader((folder / "reports.csv").open()))
    for column, known in {
        "report": (3927, 3157, "80.4%"),
        "impression": (3921, 1836, "46.8%"),
    }.items():
        texts = [row[column] for row in rows]
        cleaned = [clean(text) for text in texts]
        for which in (texts, cleaned):
            total, unique, _, ceiling = indiana.duplicates(which)
            assert (total, unique, f"{ceiling:.1%}") == known
        assert [numbers(text) for text in cleaned] == [numbers(text) for text in texts]
        assert all(mirror(mirror(text)) == text for text in texts)
        spoken = [dropped(text) for text in texts]
        assert all(dropped(text) == text for text in spoken)
        decimals = re.compile(r"\d+\.\d+|\d+(?= ?[cm]m)")
        assert [decimals.findall(t) for t in spoken] == [decimals.findall(t) for t in texts]
    texts = [row["report"] for row in rows if re.search(r"\d\.\d", row["report"])]
    changed = {
        name: sum(numbers(PROCESSING[name](t)) != numbers(t) for t in texts) for name in PROCESSING
    }
    assert len(texts) == 51 and changed["clean"] == changed["none"] == 0
    assert {changed[name] for name in DESTROYS} == {51}
    assert round(sum(bool(negated(row["report"])) for row in rows) / 3927, 2) == 0.94
