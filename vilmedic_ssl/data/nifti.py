"""Read a NIfTI-1 volume (.nii or .nii.gz) from bytes: the header is 348 fixed bytes, then the
voxels.
"""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np

from vilmedic_ssl.errors import UserError

# nifti1.h, field "datatype": code -> numpy type
DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
LIMIT = 2**30  # bytes after decompression; the volumes read here have 14 million


def read_nifti(data: bytes, *, name: str = "volume") -> tuple[np.ndarray, np.ndarray]:
    """(voxels of shape (X, Y, Z), affine (4, 4) from voxel index to millimetres: +x right, +y
    front, +z top).

    Raises:
        UserError: not NIfTI-1, truncated, too large, of another element type, without an affine
            (sform), or with voxels that are no finite numbers.
    """
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ValueError(f"more than {LIMIT} bytes")
        return _parse(data)
    except (OSError, EOFError, ValueError, KeyError, struct.error) as error:
        raise UserError(
            f"{name} is not a readable NIfTI-1 volume ({error}): fetch it again"
        ) from error


def _parse(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    order = "<" if data[:4] == struct.pack("<i", 348) else ">"
    if data[:4] != struct.pack(order + "i", 348) or data[344:347] not in (b"n+1", b"ni1"):
        raise ValueError("no NIfTI-1 header")
    dim = struct.unpack_from(order + "8h", data, 40)
    shape = tuple(n for n in dim[1 : dim[0] + 1])
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise ValueError(f"shape {shape} is not one volume")
    (code,) = struct.unpack_from(order + "h", data, 70)
    offset, slope, intercept = struct.unpack_from(order + "3f", data, 108)
    (sform,) = struct.unpack_from(order + "h", data, 254)
    if sform <= 0:
        raise ValueError("no sform affine")
    count = shape[0] * shape[1] * shape[2]
    flat = np.frombuffer(data, order + DTYPES[code], count, int(offset))
    voxels_XYZ = flat.reshape(shape[:3], order="F").astype(DTYPES[code])
    if slope not in (0.0, 1.0) or (slope and intercept):
        voxels_XYZ = voxels_XYZ * slope + intercept
    if not np.isfinite(voxels_XYZ).all():
        raise ValueError("NaN or infinite voxels")
    affine = np.eye(4)
    affine[:3] = np.array(struct.unpack_from(order + "12f", data, 280)).reshape(3, 4)
    return voxels_XYZ, affine
