"""DICOM pixels as a person at a viewer sees them: float32 in [0, 1], 0 black.

Grey (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2): stored values -> modality LUT or rescale -> VOI LUT, else
window, else the full range of the data -> inverted when small values mean white. MONOCHROME1 and a
presentation LUT shape INVERSE both say that, and the standard writes them together, so they invert
once. Padding pixels are background: black, and left out of the range. Sixteen-bit values stay whole
until the float. The tables are applied here and not by pydicom, whose VOI step wraps 12-bit values
through an 8-bit table and maps windows to the stored range.

Only the tags below and the file header are read: no name, number or date of a patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilmedic_ssl.data.dicom_tables import lookup, palette, rescale, window
from vilmedic_ssl.errors import UserError

PALETTE_TAGS = [
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "PresentationLUTShape", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "PixelData", "FloatPixelData", "DoubleFloatPixelData",
    *PALETTE_TAGS,
]  # fmt: skip
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR"}
GREY = {"MONOCHROME1", "MONOCHROME2"}


def decode(path: Path) -> np.ndarray:
    """The picture of a one-frame DICOM file: float32 (H, W), or (H, W, 3) for colour, in [0, 1].

    Raises:
        UserError: no pixels, several frames, too many pixels, an unknown photometric
            interpretation, a missing codec. Exception: whatever pydicom raises on a broken file;
            the caller names the file.
    """
    dataset = _read(path)
    stored = _stored(dataset, path)
    if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":
        return palette(dataset, stored).astype(np.float32)
    if stored.ndim == 2:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is looked for after it
            return _grey(dataset, stored)
    full = 2.0 ** int(dataset.BitsStored) - 1
    return np.clip(stored[..., :3] / full, 0, 1).astype(np.float32)


def stores_colour(path: Path) -> bool:
    """True when the header announces colour; the pixels are not read."""
    return str(_read(path, pixels=False).PhotometricInterpretation) in COLOUR


def stretch(values: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Finite numbers, from the minimum (0) to the maximum (1) of `like` (default: of themselves),
    as float32.

    Zeros when `like` is constant or empty.

    Raises:
        ValueError: NaN or infinity.
    """
    like = values if like is None else like
    low, high = (float(like.min()), float(like.max())) if like.size else (0.0, 0.0)
    if not np.isfinite(high - low):
        raise ValueError("it holds NaN or infinite pixels")
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def _read(path: Path, *, pixels: bool = True) -> Any:
    from pydicom import dcmread

    dataset = dcmread(path, specific_tags=TAGS, stop_before_pixels=not pixels)
    frames = int(dataset.get("NumberOfFrames") or 1)
    photometric = str(dataset.get("PhotometricInterpretation", "absent"))
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UserError(f"{path}: this DICOM file holds no picture; leave it out of the list")
    if frames > 1:
        raise UserError(
            f"{path}: a multi-frame DICOM file ({frames} frames); "
            "write the frames you want as files of their own"
        )
    if photometric not in GREY | COLOUR:
        raise UserError(
            f"{path}: photometric interpretation {photometric!r} is not one of "
            f"{', '.join(sorted(GREY | COLOUR))}; convert the file or leave it out"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit and int(dataset.Rows) * int(dataset.Columns) > 2 * limit:
        raise Image.DecompressionBombError(f"{dataset.Rows} x {dataset.Columns} pixels")
    return dataset


def _stored(dataset: Any, path: Path) -> np.ndarray:
    """Decoded values as stored: (H, W) or (H, W, 3), colour already RGB whatever its YBR encoding
    was.
    """
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    advice = "write `pip install 'vilmedic_ssl[dicom]'` for the codecs, or decompress the file"
    if not syntax.is_compressed:
        return pixel_array(dataset)
    try:
        if get_decoder(syntax).is_available:
            return pixel_array(dataset)
    except NotImplementedError:
        advice = "no decoder exists for it here: convert the file to another transfer syntax"
    except RuntimeError as error:  # what pydicom raises when each of its codecs has failed
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: its {syntax.name} pixels cannot be decoded ({reason}); "
            f"the file is corrupt, or needs another codec: {advice}"
        ) from error
    raise UserError(f"{path}: its pixels are compressed as {syntax.name}; {advice}")


def _grey(dataset: Any, stored_HW: np.ndarray) -> np.ndarray:
    padding_HW = _padding(dataset, stored_HW)
    values_HW = _modality(dataset, stored_HW)
    shown_HW = _voi(dataset, values_HW)
    if shown_HW is None:
        inside = values_HW[~padding_HW]
        shown_HW = stretch(values_HW, inside)
        if not shown_HW.any():
            return shown_HW  # constant: zeros, also when the file asks for inversion
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE":
        shown_HW = 1 - shown_HW
    return np.where(padding_HW, 0, shown_HW).astype(np.float32)


def _padding(dataset: Any, stored_HW: np.ndarray) -> np.ndarray:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored_HW.shape, bool)
    other = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if other is None else other))
    return (stored_HW >= low) & (stored_HW <= high)


def _modality(dataset: Any, stored_HW: np.ndarray) -> np.ndarray:
    """Stored values in the units of the modality, such as Hounsfield's.

    Raises:
        ValueError: a table or a rescale that is none, pixels that are no finite numbers.
    """
    if dataset.get("ModalityLUTSequence"):
        signed = bool(dataset.PixelRepresentation)
        return lookup(dataset, dataset.ModalityLUTSequence[0], stored_HW, signed=signed)[0]
    values_HW = rescale(dataset, stored_HW)
    if not np.isfinite(values_HW).all():
        raise ValueError("it holds NaN or infinite pixels")
    return values_HW


def _voi(dataset: Any, values_HW: np.ndarray) -> np.ndarray | None:
    """Display values in [0, 1], or None where the file names neither a VOI table nor a usable
    window.

    Of several alternatives the first is taken, and a table before a window, as viewers do.
    """
    if dataset.get("VOILUTSequence"):
        item, signed = dataset.VOILUTSequence[0], bool(values_HW.min() < 0) or _below_zero(dataset)
        shown_HW, bits = lookup(dataset, item, values_HW, signed=signed)
        return shown_HW / (2.0**bits - 1)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    found = window(dataset, 1 if function == "LINEAR" else 1e-9)
    if found is None:
        return None
    center, width = found
    if (
        function == "SIGMOID"
    ):  # C.11.2.1.3.1: 1 / (1 + exp(-4 (x - c) / w)), written so that it cannot overflow
        return (1 + np.tanh(2 * (values_HW - center) / width)) / 2
    if function == "LINEAR":  # C.11.2.1.2.1: the window's ends are pixel values, not edges
        center, width = center - 0.5, max(width - 1, 1e-9)
    return np.clip((values_HW - center) / width + 0.5, 0, 1)


def _below_zero(dataset: Any) -> bool:
    """Whether what comes out of the modality step may be negative; a table's entries are not."""
    if dataset.get("ModalityLUTSequence"):
        return False
    return bool(dataset.PixelRepresentation) or float(rescale(dataset, np.zeros(1))[0]) < 0
