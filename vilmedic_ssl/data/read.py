"""One image file in, one float tensor out: PNG (8 and 16 bit), JPEG, TIFF, BMP, DICOM and .npy.

How stored numbers become [0, 1]:
- 8-bit files are divided by 255, 16-bit ones by 65535 (Pillow modes I;16 and I), whatever range the
  picture uses;
- numbers with no such full scale (floats outside [0, 1], signed or 32-bit integers) are stretched
  from their own minimum to their own maximum; a constant image becomes zeros;
- DICOM goes through its own display chain, see `dicom.py`.

Pillow reads 16-bit *colour* at 8 bits. Alpha is dropped. The EXIF orientation is applied, as every
viewer does: a report's left and right speak of the upright picture. A truncated file is an error,
never a grey band, and Pillow's limit on pixels stays in force.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from vilmedic_ssl.data import dicom
from vilmedic_ssl.errors import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
PILLOW_EXTENSIONS = {".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp"}
DICOM_EXTENSIONS = {".dcm", ".dicom"}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of Pillow's own conversion to "L"


def read_image(path: str | Path, *, mode: Literal["gray", "rgb"] = "gray") -> torch.Tensor:
    """Read an image file as float32 (C, H, W) in [0, 1]: C is 1 for mode "gray", 3 for "rgb".

    Colour becomes grey by BT.601 luma; grey becomes rgb by repeating.

    Raises:
        UserError: missing, unreadable, truncated, too large, of an unknown kind, or several frames
            in one file.
    """
    if mode not in ("gray", "rgb"):
        raise UserError(f'read_image: mode is "gray" or "rgb", not {mode!r}')
    pixels = decode_pixels(Path(path))
    if mode == "gray":
        plane_HW = pixels if pixels.ndim == 2 else luma(pixels)
        return torch.from_numpy(np.ascontiguousarray(plane_HW))[None]
    if pixels.ndim == 2:
        return torch.from_numpy(np.ascontiguousarray(pixels)).repeat(3, 1, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def channels_of(path: str | Path) -> Literal[1, 3]:
    """3 when the file holds true colour, else 1: an RGB file with three equal channels is grey.

    Only a file stored with several channels is decoded; for the others the header is enough.

    Raises:
        UserError: as `read_image`.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "dicom":
        with _refusing(path):
            if not dicom.stores_colour(path):
                return 1
    if kind == "image":
        with _refusing(path), Image.open(path, formats=FORMATS) as image:
            if _stores_grey(image):
                return 1
    pixels = decode_pixels(path)
    return 1 if pixels.ndim == 2 or _is_grey(pixels) else 3


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Every way a decoder can fail becomes one sentence that names the file."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: too many pixels ({error}): make a smaller copy, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: not a PNG, JPEG, TIFF, BMP, DICOM or .npy image, or its first bytes are "
            f"damaged: convert it, fetch it again or leave it out{_how(path)}"
        ) from error
    except (
        Exception
    ) as error:  # decoders of foreign bytes raise anything from EOFError to struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: cannot be decoded ({reason}): the file is truncated, corrupt or of another "
            f"kind; fetch it again or leave it out{_how(path)}"
        ) from error


def _how(path: Path) -> str:
    """How a file is left out."""
    name = glob.escape(path.name)
    return f" (its row of the table, or in a folder \"dataset.exclude=['*{name}']\")"


def _kind(path: Path) -> Literal["dicom", "npy", "image"]:
    """By extension; where that says nothing, by the first bytes."""
    if not path.is_file():
        what = "is a folder, not an image" if path.is_dir() else "no such file"
        if "\\" in path.name:
            slashes = path.name.replace("\\", "/")
            raise UserError(f"{path}: {what}; the path has backslashes, write '{slashes}'")
        raise UserError(f"{path}: {what}; check the path and the folder it is relative to")
    extension = path.suffix.lower()
    if extension in DICOM_EXTENSIONS:
        return "dicom"
    if extension == ".npy":
        return "npy"
    if extension not in PILLOW_EXTENSIONS:
        with _refusing(path), path.open("rb") as file:
            head = file.read(132)
        if head[128:] == b"DICM":
            return "dicom"
        if head.startswith(b"\x93NUMPY"):
            return "npy"
    return "image"


def decode_pixels(path: Path) -> np.ndarray:
    """float32 in [0, 1]: (H, W), or (H, W, 3) where the file stores colour.

    Raises:
        UserError: as `read_image`.
    """
    reader = {"dicom": dicom.decode, "npy": _read_npy, "image": _read_pillow}[_kind(path)]
    with _refusing(path):
        pixels = reader(path)
        if 0 in pixels.shape:
            raise ValueError("it has no pixels")
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # NaN fails every comparison
            raise ValueError(f"its pixels come out as {low:g} to {high:g}, not as 0 to 1")
        return pixels


def _read_pillow(path: Path) -> np.ndarray:
    # Given a path, Pillow 13 maps an uncompressed turned TIFF with the wrong width; files it reads.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        if pages > 1:
            raise UserError(
                f"{path}: a TIFF file of {pages} pages; "
                "write the pages you want as files of their own"
            )
        upright = ImageOps.exif_transpose(image)
    if upright.mode in ("LA", "La"):
        upright = upright.convert("L")
    elif not _stores_grey(upright):
        upright = upright.convert("RGB")  # palettes, CMYK, YCbCr; alpha goes here too
    values = np.asarray(upright)
    if upright.mode == "I" and values.min() >= 0 and values.max() < 2**16:
        values = values.astype(np.uint16)  # how some Pillow versions hand over a 16-bit PNG
    return _unit(values)


def _stores_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def _read_npy(path: Path) -> np.ndarray:
    array = np.load(
        path, allow_pickle=False, mmap_mode="r"
    )  # the shape is known before any allocation
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if (
        array.ndim not in (2, 3)
        or array.dtype.kind not in "buif"
        or array.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise ValueError(
            f"its array is {array.dtype} {array.shape}, not numbers of shape (H, W), (H, W, 3) "
            "or (3, H, W)"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit and array.shape[0] * array.shape[1] > 2 * limit:
        raise Image.DecompressionBombError(f"{array.shape[0]} x {array.shape[1]} pixels")
    values = (
        array[..., 0] if array.shape[2:] == (1,) else array[..., :3] if array.ndim == 3 else array
    )
    return _unit(np.array(values))


def _unit(values: np.ndarray) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.float32)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    if values.dtype.kind == "f" and values.size and values.min() >= 0 and values.max() <= 1:
        return values.astype(np.float32)
    return dicom.stretch(values)


def _is_grey(pixels_HW3: np.ndarray) -> bool:
    red_HW = pixels_HW3[..., 0]
    return bool((red_HW == pixels_HW3[..., 1]).all() and (red_HW == pixels_HW3[..., 2]).all())


def luma(pixels_HW3: np.ndarray) -> np.ndarray:
    """BT.601; equal channels come back untouched, not off by a rounding."""
    return pixels_HW3[..., 0] if _is_grey(pixels_HW3) else pixels_HW3 @ np.array(LUMA, np.float32)
