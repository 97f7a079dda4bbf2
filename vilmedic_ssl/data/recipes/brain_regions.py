"""English names for the regions of the AAL 2 brain atlas, and those a classifier is asked for."""

from __future__ import annotations

from dataclasses import dataclass

# AAL name without its side -> English
ENGLISH = {
    "Precentral": "precentral gyrus",
    "Frontal_Sup_2": "superior frontal gyrus",
    "Frontal_Mid_2": "middle frontal gyrus",
    "Frontal_Inf_Oper": "opercular part of the inferior frontal gyrus",
    "Frontal_Inf_Tri": "triangular part of the inferior frontal gyrus",
    "Frontal_Inf_Orb_2": "orbital part of the inferior frontal gyrus",
    "Rolandic_Oper": "rolandic operculum",
    "Supp_Motor_Area": "supplementary motor area",
    "Olfactory": "olfactory cortex",
    "Frontal_Sup_Medial": "medial superior frontal gyrus",
    "Frontal_Med_Orb": "medial orbital frontal gyrus",
    "Rectus": "gyrus rectus",
    "OFCmed": "medial orbital gyrus",
    "OFCant": "anterior orbital gyrus",
    "OFCpost": "posterior orbital gyrus",
    "OFClat": "lateral orbital gyrus",
    "Insula": "insula",
    "Cingulate_Ant": "anterior cingulate cortex",
    "Cingulate_Mid": "middle cingulate cortex",
    "Cingulate_Post": "posterior cingulate cortex",
    "Hippocampus": "hippocampus",
    "ParaHippocampal": "parahippocampal gyrus",
    "Amygdala": "amygdala",
    "Calcarine": "calcarine cortex",
    "Cuneus": "cuneus",
    "Lingual": "lingual gyrus",
    "Occipital_Sup": "superior occipital gyrus",
    "Occipital_Mid": "middle occipital gyrus",
    "Occipital_Inf": "inferior occipital gyrus",
    "Fusiform": "fusiform gyrus",
    "Postcentral": "postcentral gyrus",
    "Parietal_Sup": "superior parietal gyrus",
    "Parietal_Inf": "inferior parietal gyrus",
    "SupraMarginal": "supramarginal gyrus",
    "Angular": "angular gyrus",
    "Precuneus": "precuneus",
    "Paracentral_Lobule": "paracentral lobule",
    "Caudate": "caudate nucleus",
    "Putamen": "putamen",
    "Pallidum": "pallidum",
    "Thalamus": "thalamus",
    "Heschl": "Heschl gyrus",
    "Temporal_Sup": "superior temporal gyrus",
    "Temporal_Pole_Sup": "temporal pole of the superior temporal gyrus",
    "Temporal_Mid": "middle temporal gyrus",
    "Temporal_Pole_Mid": "temporal pole of the middle temporal gyrus",
    "Temporal_Inf": "inferior temporal gyrus",
    "Cerebelum": "cerebellum",  # the atlas spells it so; its lobules are joined
    "Vermis": "cerebellar vermis",
}

# Label column -> English names. Each is seen on 13 to 66 % of the training slices; lobes are left
# out because most slices show them all.
LABELS = {
    "Precentral Gyrus": ["precentral gyrus"],
    "Orbitofrontal Cortex": [
        f"{side} orbital gyrus" for side in ("medial", "anterior", "posterior", "lateral")
    ],
    "Insula": ["insula"],
    "Anterior Cingulate": ["anterior cingulate cortex"],
    "Hippocampus": ["hippocampus"],
    "Amygdala": ["amygdala"],
    "Calcarine Cortex": ["calcarine cortex"],
    "Fusiform Gyrus": ["fusiform gyrus"],
    "Angular Gyrus": ["angular gyrus"],
    "Precuneus": ["precuneus"],
    "Caudate": ["caudate nucleus"],
    "Putamen": ["putamen"],
    "Thalamus": ["thalamus"],
    "Superior Temporal Gyrus": ["superior temporal gyrus"],
    "Cerebellum": ["cerebellum"],
    "Cerebellar Vermis": ["cerebellar vermis"],
}


@dataclass(frozen=True)
class Region:
    """One region of the atlas in words."""

    aal: str
    name: str
    side: str  # "left", "right" or "midline"


def region(aal: str) -> Region:
    """The region behind an AAL name such as "Frontal_Sup_2_L", "Cerebelum_4_5_R" or "Vermis_10".

    Raises:
        KeyError: a name the atlas does not have.
    """
    side = {"L": "left", "R": "right"}.get(aal[-1], "midline") if aal[-2:-1] == "_" else "midline"
    base = aal if side == "midline" else aal[:-2]
    joined = next((whole for whole in ("Cerebelum", "Vermis") if base.startswith(whole)), base)
    return Region(aal, ENGLISH[joined], side)


def sentence(plane: str, seen: list[Region]) -> str:
    """A report from labels: the plane, then regions on both sides, on one, and in the midline."""
    sides: dict[str, set[str]] = {}
    for r in seen:
        sides.setdefault(r.name, set()).add(r.side)
    groups = {
        "On both sides": [n for n, s in sides.items() if {"left", "right"} <= s],
        "On the left": [n for n, s in sides.items() if s == {"left"}],
        "On the right": [n for n, s in sides.items() if s == {"right"}],
        "In the midline": [n for n, s in sides.items() if s == {"midline"}],
    }
    parts = [f"{where}: {', '.join(names)}." for where, names in groups.items() if names]
    return " ".join([f"{plane.capitalize()} T1-weighted MR slice of the brain.", *parts])
