"""Lookup tables and header numbers of DICOM, checked before anything is computed from them.

Tables: PS3.3 C.11.1.1 (modality), C.11.2.1.1 (VOI), C.7.6.3.1.5 and C.7.6.3.1.6 (palette). A number
that the standard does not allow is refused: a guess would be another picture, in silence.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FEWEST, MOST = 8, 16  # bits of a table's entry


def lookup(
    dataset: Any, item: Any, values_HW: np.ndarray, *, signed: bool
) -> tuple[np.ndarray, int]:
    """Values through a table; those below it take the first entry, those above it the last.

    Args:
        item: holds LUTDescriptor (number of entries, first value mapped, bits per entry) and
            LUTData.
        signed: whether values may be negative, so that the first value mapped is signed, too, even
            where it was written as unsigned.

    Returns:
        (H, W) entries, and the bits of one.

    Raises:
        ValueError: a descriptor that is none, fewer entries than it announces, or larger ones.
    """
    descriptor = item.get("LUTDescriptor")
    if not hasattr(descriptor, "__len__") or len(descriptor) != 3:
        raise ValueError(f"the descriptor of its lookup table is {descriptor}, not three numbers")
    entries, first, bits = (int(n) for n in descriptor)
    entries = entries % 2**16 or 2**16  # 16 bits cannot write 65536
    if not FEWEST <= bits <= MOST:
        raise ValueError(
            f"its lookup table announces entries of {bits} bits, not of {FEWEST} to {MOST}"
        )
    if signed and first >= 2**15:
        first -= 2**16
    table = _entries(dataset, item, entries, bits)
    if int(table.max()) >= 2**bits:
        raise ValueError(
            f"its lookup table announces entries of {bits} bits and holds {table.max()}"
        )
    return table[np.clip(np.rint(values_HW) - first, 0, entries - 1).astype(np.int64)], bits


def _entries(dataset: Any, item: Any, entries: int, bits: int) -> np.ndarray:
    """The table: one entry to a word, or, of 8 bits, two to a word, the lower half first."""
    data = item.get("LUTData")
    data = b"" if data is None else data
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
    else:
        words = np.atleast_1d(np.asarray(data, np.int64) % 2**16)
    words = words.astype("<u2")
    packed = bits == FEWEST and len(words) < entries
    table = words.view("u1") if packed else words
    if len(table) < entries:
        raise ValueError(f"its lookup table has {len(table)} entries and announces {entries}")
    return table[:entries]


def palette(dataset: Any, stored_HW: np.ndarray) -> np.ndarray:
    """Stored values through the colour tables: (H, W, 3) float64 in [0, 1].

    Raises:
        ValueError: tables of other than 8 or 16 bits, or entries larger than they announce.
    """
    from pydicom.pixels import apply_color_lut

    descriptors = [
        dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
        for colour in ("Red", "Green", "Blue")
    ]
    if any(not hasattr(d, "__len__") or len(d) != 3 for d in descriptors):
        raise ValueError("a palette picture needs a descriptor of three numbers for each colour")
    depths = {int(descriptor[2]) for descriptor in descriptors}
    if len(depths) > 1 or not depths <= {FEWEST, MOST}:
        raise ValueError(
            f"its palette announces entries of {sorted(depths)} bits; the standard has 8 or 16"
        )
    colours = apply_color_lut(stored_HW, dataset)[..., :3]
    bits = min(*depths, 8 * colours.dtype.itemsize) if colours.dtype.itemsize == 1 else min(depths)
    if int(colours.max(initial=0)) >= 2**bits:
        raise ValueError(f"its palette announces entries of {bits} bits and holds larger ones")
    return colours / (2.0**bits - 1)


def rescale(dataset: Any, stored_HW: np.ndarray) -> np.ndarray:
    """slope x stored + intercept; where one is absent or blank, 1 and 0.

    Raises:
        ValueError: a slope of zero, which leaves one value of every picture, or no finite number.
    """
    slope, intercept = (_number(dataset.get(f"Rescale{k}")) for k in ("Slope", "Intercept"))
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ValueError(f"its rescale slope is {slope:g} and its intercept {intercept:g}")
    return stored_HW * slope + intercept


def window(dataset: Any, least_width: float) -> tuple[float, float] | None:
    """(center, width): the first where there are several; None where there is no usable one."""
    center, width = (_number(dataset.get(tag)) for tag in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not np.isfinite([center, width]).all():
        return None
    return (center, width) if width >= least_width else None


def _number(value: Any) -> float | None:
    """The first of a possibly multi-valued decimal string; None where it is absent or blank."""
    if value is not None and not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    return None if value is None or str(value).strip() == "" else float(value)
