"""read_image on every format and on every way a file can be wrong."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage

from vilmedic_ssl.data.paths import safe_join
from vilmedic_ssl.data.read import channels_of, read_image
from vilmedic_ssl.errors import UserError

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
GREY8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR8 = np.stack([GREY8, GREY8[::-1], GREY8.T], -1)


def write_dicom(path: Path, stored: np.ndarray, *, bits: int = 12, **tags: object) -> Path:
    """A minimal valid file; `tags` overrides or adds any keyword, None removes it."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName = "Nobody^Known"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    if stored.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    data.BitsAllocated = 8 * stored.dtype.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW"
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)
    return path


def lut(descriptor: object, table: np.ndarray) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return Sequence([item])


def write_raw(
    path: Path, texts: dict[str, str], tags: dict | None = None, stored: np.ndarray = RAMP
) -> Path:
    """A file with texts as they are, also those that pydicom would not write, such as "nan"."""
    write_dicom(path, stored, **(tags or {}))
    data = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        for keyword, text in texts.items():
            tag = pydicom.tag.Tag(keyword)
            vr = pydicom.datadict.dictionary_VR(tag)
            data[tag] = pydicom.dataelem.RawDataElement(
                tag, vr, len(text) + len(text) % 2, text.ljust(len(text) + len(text) % 2).encode(),
                0, False, True,
            )  # fmt: skip
        data.save_as(path, enforce_file_format=True)
    return path


def refused_to_read(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert all(word in message for word in words), message


def close(image: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-6) -> bool:
    assert image.dtype == torch.float32 and image.shape == (1, *expected.shape)
    return bool(np.abs(image[0].numpy() - expected).max() <= tolerance)


FILES = {
    "grey8.png": (GREY8, GREY8 / 255),
    "grey16.png": (RAMP, RAMP / 65535),
    "grey16.tif": (RAMP, RAMP / 65535),
    "grey8.bmp": (GREY8, GREY8 / 255),
    "grey8.tiff": (GREY8, GREY8 / 255),
    "float.tif": (GREY8.astype(np.float32) * 3, GREY8 / 255),
    "bits.png": (GREY8 > 99, GREY8 > 99),
}


@pytest.mark.parametrize("name", FILES)
def test_lossless_files_are_exact(tmp_path: Path, name: str) -> None:
    array, expected = FILES[name]
    Image.fromarray(array).save(tmp_path / name)
    assert close(read_image(tmp_path / name), expected)
    assert channels_of(tmp_path / name) == 1
    rgb = read_image(tmp_path / name, mode="rgb")
    assert rgb.shape == (3, 16, 16) and torch.equal(rgb[0], rgb[2])


def test_jpeg_without_an_extension(tmp_path: Path) -> None:
    path = tmp_path / "film"
    Image.fromarray(GREY8).save(path, format="JPEG", quality=95)
    assert close(read_image(path), GREY8 / 255, 0.05)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY8, GREY8 / 255),
        (RAMP, RAMP / 65535),
        (RAMP.astype(np.int16) - 1000, RAMP / 4080),
        (GREY8 / 510, GREY8 / 510),
        (np.full((4, 4), 7.0), np.zeros((4, 4))),
    ],
    ids=["uint8", "uint16", "int16", "unit float", "constant"],
)
def test_npy(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    assert close(read_image(tmp_path / "a.npy"), expected)
    assert channels_of(tmp_path / "a.npy") == 1


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["HWC", "CHW"])
def test_npy_colour_in_either_layout(tmp_path: Path, axes: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", COLOUR8.transpose(axes))
    expected = torch.from_numpy(COLOUR8.transpose(2, 0, 1) / np.float32(255))
    assert torch.allclose(read_image(tmp_path / "a.npy", mode="rgb"), expected)
    assert channels_of(tmp_path / "a.npy") == 3


def test_colour_becomes_grey_by_luma_and_alpha_is_dropped(tmp_path: Path) -> None:
    Image.fromarray(COLOUR8).save(tmp_path / "rgb.png")
    luma = COLOUR8 @ np.array([0.299, 0.587, 0.114]) / 255
    assert close(read_image(tmp_path / "rgb.png"), luma)
    assert channels_of(tmp_path / "rgb.png") == 3
    alpha = np.dstack([COLOUR8, np.zeros_like(GREY8)])
    Image.fromarray(alpha).save(tmp_path / "rgba.png")
    assert close(read_image(tmp_path / "rgba.png"), luma)
    Image.fromarray(np.dstack([GREY8, GREY8])).save(tmp_path / "la.png")
    assert close(read_image(tmp_path / "la.png"), GREY8 / 255)


def test_grey_stored_as_rgb_or_palette_counts_as_grey(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([GREY8] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(GREY8).convert("P").save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        assert channels_of(tmp_path / name) == 1
        assert close(read_image(tmp_path / name), GREY8 / np.float32(255), 0)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied_once(tmp_path: Path, extension: str) -> None:
    image = Image.fromarray(np.repeat(np.repeat(GREY8[:2, :2] * 100, 16, 0), 24, 1))
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    image.save(tmp_path / f"a.{extension}", exif=exif)
    turned = np.rot90(np.asarray(image), -1) / 255
    assert close(read_image(tmp_path / f"a.{extension}"), turned, 0.1)


# DICOM ------------------------------------------------------------------------------------------


def test_dicom_without_window_uses_the_range_of_the_data(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP // 2 + 100)
    assert close(read_image(path), RAMP / 4080, 1e-3)
    assert channels_of(path) == 1


def test_monochrome1_and_inverse_shape_invert_once(tmp_path: Path) -> None:
    expected = 1 - RAMP / 4080
    for tags in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        assert close(read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags)), expected)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", np.clip((RAMP - 1999.5) / 999 + 0.5, 0, 1)),
        ("LINEAR_EXACT", np.clip((RAMP - 2000.0) / 1000 + 0.5, 0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000))),
    ],
)
def test_window_functions(tmp_path: Path, function: str, expected: np.ndarray) -> None:
    tags = {"WindowCenter": [2000, 5], "WindowWidth": [1000, 9], "VOILUTFunction": function}
    assert close(read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags)), expected)
    tags["PhotometricInterpretation"] = "MONOCHROME1"
    assert close(read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags)), 1 - expected)


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    tags = {"RescaleSlope": "2", "RescaleIntercept": "-1000"}
    tags |= {"WindowCenter": "40", "WindowWidth": "400"}
    expected = np.clip((RAMP * 2.0 - 1000 - 39.5) / 399 + 0.5, 0, 1)
    assert close(read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags)), expected)


def test_signed_values(tmp_path: Path) -> None:
    stored = RAMP.astype(np.int16) - 2040
    assert close(read_image(write_dicom(tmp_path / "a.dcm", stored)), RAMP / 4080)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    stored = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = read_image(write_dicom(tmp_path / "a.dcm", stored, bits=16))
    assert len(torch.unique(image)) == 65536


def test_unusable_window_is_ignored(tmp_path: Path) -> None:
    tags = {"WindowCenter": "0", "WindowWidth": "0"}
    assert close(read_image(write_dicom(tmp_path / "a.dcm", RAMP, **tags)), RAMP / 4080)


def test_voi_table_of_8_bits_on_12_bit_values_does_not_wrap(tmp_path: Path) -> None:
    table = np.linspace(255, 0, 4096).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=lut([4096, 0, 8], table))
    assert close(read_image(path), table[RAMP] / 255)


def test_modality_table_then_range(tmp_path: Path) -> None:
    table = np.linspace(0, 60000, 4096).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=lut([4096, 0, 16], table))
    mapped = table[RAMP].astype(float)
    assert close(read_image(path), mapped / mapped.max())


def test_padding_is_black_and_outside_the_range(tmp_path: Path) -> None:
    stored = RAMP + 5
    stored[0, 0] = 0
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        tags = {"PixelPaddingValue": 0, "PhotometricInterpretation": photometric}
        image = read_image(write_dicom(tmp_path / "a.dcm", stored, bits=13, **tags))
        assert image[0, 0, 0] == 0 and image.max() == 1
        assert image[0, 0, 1] == (0 if photometric == "MONOCHROME2" else 1)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_constant_dicom_is_zeros(tmp_path: Path, photometric: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP * 0 + 9, PhotometricInterpretation=photometric)
    assert close(read_image(path), np.zeros((16, 16)))


def test_dicom_colour_ybr_and_palette(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "rgb.dcm", COLOUR8, bits=8)
    expected = torch.from_numpy(COLOUR8.transpose(2, 0, 1) / np.float32(255))
    assert torch.allclose(read_image(path, mode="rgb"), expected)
    assert channels_of(path) == 3
    ybr = np.asarray(Image.fromarray(COLOUR8).convert("YCbCr"))
    tags = {"PhotometricInterpretation": "YBR_FULL"}
    path = write_dicom(tmp_path / "ybr.dcm", ybr, bits=8, **tags)
    assert (read_image(path, mode="rgb") - expected).abs().max() < 3 / 255
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in zip(("Red", "Green", "Blue"), (1, 2, 3), strict=True):
        name = f"{colour}PaletteColorLookupTable"
        tags |= {f"{name}Descriptor": [256, 0, 16]}
        tags |= {f"{name}Data": (np.arange(256) * 80 * table).astype("<u2").tobytes()}
    path = write_dicom(tmp_path / "palette.dcm", GREY8, bits=8, **tags)
    image = read_image(path, mode="rgb")
    assert torch.allclose(image[2], torch.from_numpy(GREY8 * (240 / 65535)).float())
    assert channels_of(path) == 3


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    ("descriptor", "size", "words"),
    [
        *(([4096, 0, bits], 4096, f"{bits} bits") for bits in (0, 1, 7, 17, 255, 65535)),
        ([4096, 0, 16], 4095, "has 4095 entries and announces 4096"),
        ([4096, 0, 8], 2047, "has 4094 entries and announces 4096"),
        ([0, 0, 16], 4096, "announces 65536"),
        ([4096, 0, 10], 4096, "10 bits and holds 4095"),
        ([4096, 0], 4096, "three numbers"),
        (4096, 4096, "three numbers"),
    ],
)
def test_tables_that_the_standard_does_not_allow(
    tmp_path: Path, sequence: str, descriptor: object, size: int, words: str
) -> None:
    tags = {sequence: lut(descriptor, np.arange(size))}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_eight_bit_entries_two_to_a_word(tmp_path: Path, sequence: str) -> None:
    table = np.linspace(0, 255, 255).astype(np.uint8)  # an odd number: the last byte is padding
    packed = np.append(table, np.uint8(0)).view("<u2")
    tags = {sequence: lut([255, 0, 8], packed)}
    path = write_dicom(tmp_path / "a.dcm", GREY8, bits=8, **tags)
    assert close(read_image(path), table[np.minimum(GREY8, 254)] / 255)


def test_a_table_of_65536_entries_says_0(tmp_path: Path) -> None:
    table = np.arange(65536)[::-1]
    path = write_dicom(
        tmp_path / "a.dcm", RAMP * 16, bits=16, VOILUTSequence=lut([0, 0, 16], table)
    )
    assert close(read_image(path), 1 - RAMP * 16 / 65535)


@pytest.mark.parametrize(("low", "intercept"), [(-1024, "0"), (0, "-1024")])
@pytest.mark.parametrize("above", [0, 1024])
def test_a_first_value_below_zero_may_be_written_without_its_sign(
    tmp_path: Path, low: int, intercept: str, above: int
) -> None:
    """Also where no pixel of this picture is negative."""
    stored = (RAMP // 4).astype(np.int16 if low else np.uint16) + low + above
    table = np.linspace(0, 4095, 4096).astype(np.uint16)
    for vr in ("US", "SS"):
        sequence = lut([4096, 65536 - 1024, 12], table)
        if vr == "SS":
            sequence[0].add_new("LUTDescriptor", "SS", [4096, -1024, 12])
        tags = {"VOILUTSequence": sequence, "RescaleIntercept": intercept, "RescaleSlope": "1"}
        path = write_dicom(tmp_path / "a.dcm", stored, bits=16, **tags)
        assert close(read_image(path), (RAMP // 4 + above) / 4095)


@pytest.mark.parametrize("bits", [0, 1, 7, 12, 32])
def test_palettes_of_a_strange_depth(tmp_path: Path, bits: int) -> None:
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = np.arange(256).astype("<u2").tobytes()
    refused_to_read(write_dicom(tmp_path / "a.dcm", GREY8, bits=8, **tags), "palette")


@pytest.mark.parametrize("tags", [
    {"RescaleSlope": "0"}, {"RescaleSlope": "nan"}, {"RescaleSlope": "inf"},
    {"RescaleIntercept": "nan"}, {"RescaleSlope": "1e308", "RescaleIntercept": "1e308"},
])  # fmt: skip
@pytest.mark.parametrize("windowed", [False, True])
def test_a_rescale_that_is_none(tmp_path: Path, tags: dict[str, str], windowed: bool) -> None:
    more = {"WindowCenter": "40", "WindowWidth": "400"} if windowed else {}
    path = write_raw(
        tmp_path / "a.dcm", {"RescaleSlope": "1", "RescaleIntercept": "0", **tags}, more
    )
    refused_to_read(path)


@pytest.mark.parametrize("tags", [
    {"WindowCenter": "nan", "WindowWidth": "400"}, {"WindowCenter": "40", "WindowWidth": "nan"},
    {"WindowCenter": "40", "WindowWidth": "-400"}, {"WindowCenter": "40", "WindowWidth": "inf"},
    {"WindowCenter": "inf", "WindowWidth": "400"}, {"WindowCenter": "40", "WindowWidth": ""},
])  # fmt: skip
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_that_is_none_is_ignored(
    tmp_path: Path, tags: dict[str, str], function: str
) -> None:
    path = write_raw(tmp_path / "a.dcm", {**tags, "VOILUTFunction": function})
    assert close(read_image(path), RAMP / 4080)


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "BitsStored": st.sampled_from([0, 1, 8, 12, 16, 17, 255]),
        "HighBit": st.sampled_from([0, 11, 15, 40]),
        "PixelRepresentation": st.sampled_from([0, 1, 2, 255]),
        "SamplesPerPixel": st.sampled_from([0, 1, 2, 3]),
        "PhotometricInterpretation": st.sampled_from(
            ["MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR"]
        ),
        "PixelPaddingValue": st.integers(0, 32767),
        "RescaleSlope": st.sampled_from(["0", "-1", "1e300", "nan", "-inf", "1e-300"]),
        "RescaleIntercept": st.sampled_from(["0", "-1024", "1e300", "nan"]),
        "WindowCenter": st.sampled_from(["0", "-1e300", "nan", "inf"]),
        "WindowWidth": st.sampled_from(["0", "-1", "1e-300", "1", "1e300", "nan", "inf"]),
        "VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "CUBIC"]),
        "VOILUTSequence": st.tuples(
            st.sampled_from([0, 1, 255, 4096, 65535]),
            st.sampled_from([0, 5, 32768, 65535]),
            st.sampled_from([0, 1, 8, 12, 16, 99]),
        ).map(lambda d: lut(list(d), np.arange(4096))),
    },
)


@given(HEADERS, st.integers(0, 65535), st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_header_says_pixels_are_from_0_to_1_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tags: dict[str, object], value: int, same: bool
) -> None:
    stored = RAMP * 0 + value if same else RAMP + value % 1000
    texts = {k: v for k, v in tags.items() if isinstance(v, str)}
    others = {k: v for k, v in tags.items() if not isinstance(v, str)}
    path = write_raw(tmp_path_factory.mktemp("header") / "a.dcm", texts, others, stored)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom's, about the header
        try:
            image = read_image(path)
        except UserError as error:
            assert str(path) in str(error)
            return
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1


def test_dicom_by_its_mark(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "IM000001", RAMP)
    assert close(read_image(path), RAMP / 4080)


def test_the_patient_is_never_read(tmp_path: Path) -> None:
    from vilmedic_ssl.data import dicom

    data = dicom._read(write_dicom(tmp_path / "a.dcm", RAMP))
    assert "PatientName" not in data and "SOPInstanceUID" not in data


# Refusals ---------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    for call in (read_image, channels_of):
        with pytest.raises(UserError) as caught:
            call(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message
        assert all(word in message for word in words), message


def test_missing_folder_empty_and_unknown(tmp_path: Path) -> None:
    refused(tmp_path / "no.png", "no such file")
    refused(tmp_path, "folder")
    for name in ("empty.png", "empty.dcm", "empty.npy", "empty"):
        (tmp_path / name).touch()
        refused(tmp_path / name)
    (tmp_path / "text.jpg").write_text("not a picture")
    refused(tmp_path / "text.jpg", "not a PNG")
    (tmp_path / "text.dcm").write_text("not a picture")
    refused(tmp_path / "text.dcm")


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp", "dcm", "npy"])
def test_truncated(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    if extension == "dcm":
        write_dicom(path, noise, bits=8)
    elif extension == "npy":
        np.save(path, noise)
    else:
        Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(UserError, match="truncated, corrupt") as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_corrupt_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[200:400] = bytes(200)
    path.write_bytes(bytes(raw))
    with pytest.raises(UserError, match="truncated, corrupt"):
        read_image(path)


@pytest.mark.parametrize("extension", ["png", "npy", "dcm"])
def test_pixel_limit(tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{extension}"
    {
        "png": lambda: Image.fromarray(GREY8).save(path),
        "npy": lambda: np.save(path, COLOUR8),
        "dcm": lambda: write_dicom(path, COLOUR8, bits=8),
    }[extension]()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(path, "too many pixels")


def test_multi_frame_and_multi_page(tmp_path: Path) -> None:
    stack = np.zeros((32, 16), np.uint16)
    refused(write_dicom(tmp_path / "a.dcm", stack, Rows=16, NumberOfFrames=2), "2 frames")
    pages = [Image.fromarray(GREY8), Image.fromarray(GREY8)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="2 pages"):
        read_image(tmp_path / "a.tif")


def test_dicom_without_pixels_or_of_unknown_colour(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="CMYK")
    refused(path, "'CMYK'", "MONOCHROME1")
    data = pydicom.dcmread(path)
    del data.Rows, data.Columns, data.PixelData
    data.save_as(tmp_path / "b.dcm")
    refused(tmp_path / "b.dcm", "no picture")


def test_missing_codec_says_what_to_install(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    if get_decoder(JPEGLSLossless).is_available:
        pytest.skip("the codec is installed")
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    with pytest.raises(UserError, match=r"pip install 'vilmedic_ssl\[dicom\]'"):
        read_image(path)


def test_pickles_and_strange_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    refused(tmp_path / "a.npy", "pickle")
    np.save(tmp_path / "b.npy", np.zeros((6, 6, 2)))
    refused(tmp_path / "b.npy", "(6, 6, 2)")
    np.save(tmp_path / "c.npy", np.full((4, 4), np.nan))
    refused(tmp_path / "c.npy", "NaN")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [0.5, 7.0])
def test_pixels_that_are_no_numbers_are_refused_in_every_format(
    tmp_path: Path, value: float, others: float
) -> None:
    array = np.full((6, 6), others, np.float32)
    array[0, 0], array[2, 3] = 0, value
    np.save(tmp_path / "grey.npy", array)
    np.save(tmp_path / "colour.npy", np.dstack([array] * 3))
    Image.fromarray(array).save(tmp_path / "a.tif")
    write_dicom(tmp_path / "a.dcm", RAMP[:6, :6], WindowCenter="1", WindowWidth="2")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.PixelData, data.PixelRepresentation, data.BitsStored, data.HighBit
    data.FloatPixelData, data.BitsAllocated = array.tobytes(), 32
    data.save_as(tmp_path / "a.dcm")
    for path in sorted(tmp_path.iterdir()):
        refused_to_read(path, "NaN or infinite")


def test_no_reader_hands_on_pixels_outside_0_to_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vilmedic_ssl.data import read

    Image.fromarray(GREY8).save(tmp_path / "a.png")
    for bad in (np.nan, 1.5, -0.1):
        monkeypatch.setattr(read, "_read_pillow", lambda path, bad=bad: np.full((2, 2), bad))
        refused_to_read(tmp_path / "a.png", "come out as")


def test_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gray"):
        read_image(tmp_path / "a.png", mode="grey")  # type: ignore[arg-type]


def test_import_does_not_load_pydicom() -> None:
    code = "import sys, vilmedic_ssl.data.read; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Paths ------------------------------------------------------------------------------------------


def test_safe_join(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "inner.png").symlink_to(root / "in")
    assert safe_join(root, "in/../in/a.png") == (root / "in/a.png").resolve()
    assert safe_join(root, "inner.png") == (root / "in").resolve()
    assert safe_join(root, str(root / "in/../in/a.png")) == (root / "in/a.png").resolve()
    assert safe_join(root, r"in\..\in\a.png") == (root / "in/a.png").resolve()
    (tmp_path / "route").symlink_to(root)
    assert safe_join(tmp_path / "route", str(root / "in/a.png")) == (root / "in/a.png").resolve()
    assert safe_join(root, str(tmp_path / "route/in/a.png")) == (root / "in/a.png").resolve()
    assert safe_join("/", str(root / "in/a.png")) == (root / "in/a.png").resolve()
    (root / "a\\b.png").touch()
    assert safe_join(root, "a\\b.png") == root.resolve() / "a\\b.png"
    out = str(tmp_path / "root/../secret.png")
    assert (tmp_path / "roots").mkdir() is None
    for bad in (out, str(tmp_path / "roots/a.png"), r"..\secret.png", r"\\host\share\a", r"\a"):
        with pytest.raises(UserError, match="leads out of .*set the root to a folder"):
            safe_join(root, bad)
    for bad in ("../secret.png", "in/../../x", "/etc/passwd", "link.png", "C:\\x", "a\0b"):
        with pytest.raises(UserError):
            safe_join(root, bad)
