"""MedMNIST v2 and its larger sizes as published: names, tasks, counts, licences and checksums.

Source of every value: Zenodo record 10519652 and `medmnist/info.py` of the PyPI package 3.0.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilmedic_ssl.data.fetching.http import Https
from vilmedic_ssl.data.recipes.base import Published

SIZES = (28, 64, 128, 224)  # pixels
SPLITS = ("train", "val", "test")
VOLUMES = (  # three-dimensional: not read yet
    "organmnist3d",
    "nodulemnist3d",
    "adrenalmnist3d",
    "fracturemnist3d",
    "vesselmnist3d",
    "synapsemnist3d",
)
ADDRESS = "https://zenodo.org/records/10519652/files/{file}?download=1"
FAMILY = "medmnist-SET[-64|-128|-224]"
ORGANS = (
    "bladder; femur-left; femur-right; heart; kidney-left; kidney-right; liver; "
    "lung-left; lung-right; pancreas; spleen"
)
Task = Literal["multi-class", "binary", "multi-label", "ordinal"]


@dataclass(frozen=True, kw_only=True)
class MedSet:
    """One published set.

    Attributes:
        channels: 1 grey, 3 colour.
        counts: images of train, val and test.
        labels: class names in order, joined by "; ".
        md5: of the file of each of SIZES.
        note: what to know before believing a score.
    """

    name: str
    task: Task
    channels: int
    counts: tuple[int, int, int]
    labels: str
    md5: tuple[str, str, str, str]
    licence: str = "CC BY 4.0"
    note: str = ""

    @property
    def classes(self) -> list[str]:
        return self.labels.split("; ")

    def file(self, size: int) -> str:
        """`pneumoniamnist.npz`, `pneumoniamnist_64.npz`."""
        return f"{self.name}.npz" if size == 28 else f"{self.name}_{size}.npz"

    def recipe(self, size: int) -> Published:
        """`medmnist-pneumoniamnist`, `medmnist-pneumoniamnist-64`."""
        raw = sum(self.counts) * (size * size * self.channels + 8 * len(self.classes))
        limit = raw + raw // 100 + 2**20  # a zip of what cannot be compressed is little longer
        file = self.file(size)
        source = Https(
            archive=file,
            md5=self.md5[SIZES.index(size)],
            urls=(ADDRESS.format(file=file),),
            limit=limit,
        )
        return Published(
            name=f"medmnist-{self.name}" + ("" if size == 28 else f"-{size}"),
            size=f"at most {limit / 1e6:,.0f} MB",
            licence=self.licence,
            source="Zenodo record 10519652 (MedMNIST v2, MedMNIST+)",
            about=f"{sum(self.counts):,} images of {size} x {size}, {self.task}",
            place="medmnist",
            listed=FAMILY,
            file=source,
        )


SETS = {
    known.name: known
    for known in (
        MedSet(
            name="pathmnist",
            task="multi-class",
            channels=3,
            counts=(89996, 10004, 7180),
            labels=(
                "adipose; background; debris; lymphocytes; mucus; smooth muscle; normal colon "
                "mucosa; cancer-associated stroma; colorectal adenocarcinoma epithelium"
            ),
            md5=(
                "a8b06965200029087d5bd730944a56c1",
                "55aa9c1e0525abe5a6b9d8343a507616",
                "ac42d08fb904d92c244187169d1fd1d9",
                "2c51a510bcdc9cf8ddb2af93af1eadec",
            ),
        ),
        MedSet(
            name="chestmnist",
            task="multi-label",
            channels=1,
            counts=(78468, 11219, 22433),
            labels=(
                "atelectasis; cardiomegaly; effusion; infiltration; mass; nodule; pneumonia; "
                "pneumothorax; consolidation; edema; emphysema; fibrosis; pleural; hernia"
            ),
            md5=(
                "02c8a6516a18b556561a56cbdd36c4a8",
                "9de6cd0b934ebb5b7426cfba5efbae16",
                "db107e5590b27930b62dbaf558aebee3",
                "45bd33e6f06c3e8cdb481c74a89152aa",
            ),
            note=(
                "Labels were read from reports by a program. The films are those of NIH "
                "ChestX-ray14, of which other sets (RSNA, SIIM) hold some too."
            ),
        ),
        MedSet(
            name="dermamnist",
            task="multi-class",
            channels=3,
            counts=(7007, 1003, 2005),
            labels=(
                "actinic keratoses and intraepithelial carcinoma; basal cell carcinoma; benign "
                "keratosis-like lesions; dermatofibroma; melanoma; melanocytic nevi; vascular "
                "lesions"
            ),
            md5=(
                "0744692d530f8e62ec473284d019b0c7",
                "b70a2f5635c6199aeaa28c31d7202e1f",
                "2defd784463fa5243564e855ed717de1",
                "8974907d8e169bef5f5b96bc506ae45d",
            ),
            licence="CC BY-NC 4.0",
            note=(
                "HAM10000 holds several photographs of one lesion (2,545 of 10,015 repeat one) and "
                "the split is random: scores are optimistic."
            ),
        ),
        MedSet(
            name="octmnist",
            task="multi-class",
            channels=1,
            counts=(97477, 10832, 1000),
            labels="choroidal neovascularization; diabetic macular edema; drusen; normal",
            md5=(
                "c68d92d5b585d8d81f7112f81e2d0842",
                "e229e9440236b774d9f0dfef9d07bdaf",
                "0a97e76651ace45c5d943ee3f65b63ae",
                "abc493b6d529d5de7569faaef2773ba3",
            ),
        ),
        MedSet(
            name="pneumoniamnist",
            task="binary",
            channels=1,
            counts=(4708, 524, 624),
            labels="normal; pneumonia",
            md5=(
                "28209eda62fecd6e6a2d98b1501bb15f",
                "8f4eceb4ccffa70c672198ea285246c6",
                "05b46931834c231683c68f40c47b2971",
                "d6a3c71de1b945ea11211b03746c1fe1",
            ),
            note=(
                "The films are of children. Some are smaller than 224 pixels (down to 127), so the "
                "224 set is partly up-sampled."
            ),
        ),
        MedSet(
            name="retinamnist",
            task="ordinal",
            channels=3,
            counts=(1080, 120, 400),
            labels="grade 0; grade 1; grade 2; grade 3; grade 4",
            md5=(
                "bd4c0672f1bba3e3a89f0e4e876791e4",
                "afda852cc34dcda56f86ad2b2457dbcc",
                "e48e916a24454daf90583d4e6efb1a18",
                "eae7e3b6f3fcbda4ae613ebdcbe35348",
            ),
            note=(
                "The classes are ordered grades: a near miss is better than a far one, which plain "
                "accuracy does not see."
            ),
        ),
        MedSet(
            name="breastmnist",
            task="binary",
            channels=1,
            counts=(546, 78, 156),
            labels="malignant; normal, benign",
            md5=(
                "750601b1f35ba3300ea97c75c52ff8f6",
                "742edef2a1fd1524b2efff4bd7ba9364",
                "363e4b3f8d712e9b5de15470a2aaadf1",
                "b56378a6eefa9fed602bb16d192d4c8b",
            ),
        ),
        MedSet(
            name="bloodmnist",
            task="multi-class",
            channels=3,
            counts=(11959, 1712, 3421),
            labels=(
                "basophil; eosinophil; erythroblast; immature granulocytes; lymphocyte; monocyte; "
                "neutrophil; platelet"
            ),
            md5=(
                "7053d0359d879ad8a5505303e11de1dc",
                "2b94928a2ae4916078ca51e05b6b800b",
                "adace1e0ed228fccda1f39692059dd4c",
                "b718ff6835fcbdb22ba9eacccd7b2601",
            ),
        ),
        MedSet(
            name="tissuemnist",
            task="multi-class",
            channels=1,
            counts=(165466, 23640, 47280),
            labels=(
                "Collecting Duct, Connecting Tubule; Distal Convoluted Tubule; Glomerular "
                "endothelial cells; Interstitial endothelial cells; Leukocytes; Podocytes; "
                "Proximal Tubule Segments; Thick Ascending Limb"
            ),
            md5=(
                "ebe78ee8b05294063de985d821c1c34b",
                "123ece2eba09d0aa5d698fda57103344",
                "61b955355d7425a89687b06cca3ce0c2",
                "b077128c4a949f0a4eb01517f9037b9c",
            ),
            note=(
                "The cells are cut from slices of few specimens, which the split does not keep "
                "apart: scores are optimistic."
            ),
        ),
        MedSet(
            name="organamnist",
            task="multi-class",
            channels=1,
            counts=(34561, 6491, 17778),
            labels=ORGANS,
            md5=(
                "68e3f8846a6bd62f0c9bf841c0d9eacc",
                "2dcccc29b88e6da5a01161ef20cda288",
                "eeae80d0a227a8d099027e1b3cfd3b60",
                "50747347e05c87dd3aaf92c49f9f3170",
            ),
        ),
        MedSet(
            name="organcmnist",
            task="multi-class",
            channels=1,
            counts=(12975, 2392, 8216),
            labels=ORGANS,
            md5=(
                "b9ceb9546e10131b32923c5bbeaea2b1",
                "3ce34a8724ea6f548e6db4744d03b6a9",
                "773c1f009daa3fe5d9a2a201b2a7ed94",
                "050f5e875dc056f6768abf94ec9995d1",
            ),
        ),
        MedSet(
            name="organsmnist",
            task="multi-class",
            channels=1,
            counts=(13932, 2452, 8827),
            labels=ORGANS,
            md5=(
                "9ab87b696fb54e2a387ebe992d6ed5f1",
                "53a6d115339d874c25e309a994ff46d3",
                "ded0c5fa01a95dc4978b956f613e9b8e",
                "b354719e553fbbb2513d5533f52a4cb1",
            ),
        ),
    )
}
