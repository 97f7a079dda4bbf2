"""Names of the original ViLMedic whose data needs an agreement: how to get it, and where it goes.

The layouts and sizes are those of ViLMedic's `data/download.py`; the rest is said by the owners of
the data on the pages named.
"""

from __future__ import annotations

from vilmedic_ssl.data.recipes.base import Elsewhere

SPLITS = ("train", "validate", "test")
RUN = ("vilmedic-ssl", "train", "config/SELFSUP/simclr-mimic.yml")
FILMS = "dataset.image_path=data/images/"
PHYSIONET = (
    "PhysioNet account; credentialing (https://physionet.org/settings/credentialing/) with the "
    "CITI course Data or Specimens Only Research; sign the agreement on the page of the data"
)


def _tok(folder: str, *files: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{split}.{file}.tok" for split in SPLITS for file in files)


ELSEWHERE = (
    Elsewhere(
        name="mimic-cxr-images-512",
        size="by hand",
        licence="PhysioNet credentialed, no passing on",
        source="physionet.org/content/mimic-cxr-jpg",
        about="377,110 chest X-rays",
        place="images/mimic-cxr-images-512",
        needs=("files/p*/p*/s*/*.jpg",),
        was="the MIMIC-CXR films at short side 512, 9 GB, withdrawn because they are credentialed.",
        now=f"{PHYSIONET}, https://physionet.org/content/mimic-cxr-jpg/; then `wget -r -N -c -np "
        "--user NAME --ask-password https://physionet.org/files/mimic-cxr-jpg/2.1.0/`",
        layout="data/images/mimic-cxr-images-512/files/p10/p10000032/s50414267/DICOM_ID.jpg; short "
        "side 512 is enough, larger is only slower; the lists of images are those of SELFSUP",
        then=(*RUN, "dataset.root=data/SELFSUP/mimic-cxr/", FILMS),
    ),
    Elsewhere(
        name="SELFSUP",
        size="by hand",
        licence="that of each data set",
        source="physionet.org/content/mimic-cxr",
        about="reports and splits of MIMIC-CXR",
        needs=_tok("mimic-cxr", "image", "report"),
        was="line-aligned splits and reports of MIMIC-CXR, Indiana and PadChest, 677 MB from a "
        "cloud drive, with credentialed text.",
        now=f"{PHYSIONET}, https://physionet.org/content/mimic-cxr/ for mimic-cxr-reports.zip and "
        "https://physionet.org/content/mimic-cxr-jpg/ for mimic-cxr-2.0.0-split.csv.gz; for "
        "Indiana, which is open, `vilmedic-ssl download indiana-images-512`",
        layout="data/SELFSUP/mimic-cxr/{train,validate,test}.{image,report,label}.tok, line n of "
        "each the same sample, images relative to data/images; label.tok only for scores",
        then=(*RUN, "dataset.root=data/SELFSUP/mimic-cxr/", FILMS),
    ),
    Elsewhere(
        name="CLIP",
        size="by hand",
        licence="PhysioNet credentialed, no passing on",
        source="physionet.org/content/mimic-cxr",
        about="impressions and splits of MIMIC-CXR",
        needs=_tok("mimic-cxr", "image", "impression"),
        was="line-aligned splits and impressions of MIMIC-CXR, 40 MB from a cloud drive, with "
        "credentialed text.",
        now=f"{PHYSIONET}, https://physionet.org/content/mimic-cxr/ for mimic-cxr-reports.zip",
        layout="data/CLIP/mimic-cxr/{train,validate,test}.{image,impression}.tok, line n of each "
        "the same sample, images relative to data/images",
        then=(*RUN, "dataset.root=data/CLIP/mimic-cxr/", FILMS),
    ),
    Elsewhere(
        name="padchest-images-512",
        size="by hand",
        licence="CC BY-SA 4.0, on request",
        source="bimcv.cipf.es/bimcv-projects/padchest",
        about="160,000 chest X-rays, Spanish reports",
        place="images/padchest-images-512",
        needs=("*.png",),
        was="the PadChest films at short side 512, 12 GB, withdrawn because access is on request.",
        now="fill in the form at https://bimcv.cipf.es/bimcv-projects/padchest/; 50 zips of 16-bit "
        "PNG, 1 TB, and PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        layout="data/images/padchest-images-512/IMAGE_ID.png, 16 bits are fine, short side 512 is "
        "enough; data/SELFSUP/padchest/all/{train,validate,test}.{image,report}.tok",
        then=(
            *(*RUN[:2], "config/SELFSUP/convirt-padchest.yml"),
            "dataset.image.root=data/SELFSUP/padchest/all/",
            "dataset.image.image_path=data/images/",
            "dataset.seq.root=data/SELFSUP/padchest/all/",
        ),
    ),
)
