"""DICOM headers that contradict their pixels or each other, drawn at random: read right, or refused in words of ours.

The oracle is what was written, and pydicom's pixels wherever pydicom reads the file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medmoco.data.image_io.intensity import GrayImage
from tests.helpers.both import SECRET, read_both

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
SIDES = (40, 36)


def in_order(data: bytes, syntax: str, bits: int) -> bytes:
    """Return little-endian samples as a syntax stores them; bytes of OW lie in words."""
    data += b"\0" * (len(data) % 2)
    return np.frombuffer(data, "<u2").astype(">u2").tobytes() if syntax == ExplicitVRBigEndian and bits <= 16 else data


def write(
    path: Path, cells: NDArray[Any], syntax: str = ExplicitVRLittleEndian, trailing: int = 0, **tags: Any
) -> None:
    """Write cells (H, W) as they are; a tag's value may be a pair of VR and value."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.PatientID = SECRET
    dataset.Rows, dataset.Columns = cells.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * cells.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    for name, value in tags.items():
        if isinstance(value, tuple):
            dataset.add(DataElement(pydicom.datadict.tag_for_keyword(name), *value))  # type: ignore[arg-type]
        else:
            setattr(dataset, name, value)
    dataset.PixelData = in_order(cells.tobytes(), syntax, bits)
    dataset["PixelData"].VR = "OW"
    if trailing:
        dataset.DataSetTrailingPadding = bytes(trailing)
    dataset.save_as(path, enforce_file_format=True)


def level(value: float, low: float, high: float, white: int, *, inverted: bool) -> int:
    """One grey level by the definition of a linear spread."""
    share = min(max((value - low) / ((high - low) or 1), 0), 1)
    return round((1 - share if inverted else share) * white)


def pixels_of(path: Path) -> NDArray[Any]:
    """What pydicom reads, without what it remarks on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path).pixel_array


@st.composite
def samples(draw: st.DrawFn) -> dict[str, Any]:
    """Where samples lie, their sign, padding, polarity, and what is in the bits that nobody uses."""
    allocated = draw(st.sampled_from([8, 16]))
    stored = draw(st.integers(2, allocated))
    signed = draw(st.booleans())
    lowest = -(2 ** (stored - 1)) if signed else 0
    values = st.integers(lowest, lowest + 2**stored - 1)
    padding = draw(st.none() | st.tuples(values, st.none() | values))
    return {
        "allocated": allocated, "stored": stored, "signed": signed, "lowest": lowest, "padding": padding,
        "shift": draw(st.integers(0, allocated - stored)) if draw(st.booleans()) else 0,
        "vr": draw(st.sampled_from(["US", "SS"])),
        "inverted": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "syntax": draw(st.sampled_from([*NATIVE, RLELossless, JPEGLSLossless, JPEG2000Lossless])),
    }  # fmt: skip


def padding_tags(case: dict[str, Any]) -> dict[str, Any]:
    """The padding, under a VR that may have the wrong sign, as the same bits."""
    tags = {}
    for name, value in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), case["padding"] or (), strict=False):
        if value is not None:
            bits = value % 2**16
            tags[name] = (case["vr"], bits - 2**16 if case["vr"] == "SS" and bits >= 2**15 else bits)
    return tags


@settings(max_examples=150, deadline=None)
@given(case=samples(), window=st.sampled_from(["voi", "full", (3.0, 40.0)]))
def test_read_image__samples_anywhere_in_their_cells(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any], window: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "samples.dcm"
    stored, shift, allocated = case["stored"], case["shift"], case["allocated"]
    rng = np.random.default_rng(case["seed"])
    values = rng.integers(case["lowest"], case["lowest"] + 2**stored, SIDES)
    mask = (2**stored - 1) << shift
    compressed = case["syntax"] not in NATIVE
    unused = rng.integers(0, 2**allocated, SIDES) & ~mask
    cells = (((values % 2**stored) << shift) | unused).astype(f"u{allocated // 8}")
    tags = {
        "BitsStored": stored, "HighBit": stored - 1 + shift, "PixelRepresentation": int(case["signed"]),
        "PhotometricInterpretation": "MONOCHROME1" if case["inverted"] else "MONOCHROME2", **padding_tags(case),
    }  # fmt: skip
    write(path, cells, ExplicitVRLittleEndian if compressed else case["syntax"], **tags)
    if compressed:
        compress(path, case["syntax"])
    found = read_both(path, window=window)

    if shift and case["syntax"] in (JPEGLSLossless, JPEG2000Lossless):
        assert isinstance(found, str)
        assert f"High Bit is {stored - 1 + shift}" in found
        return
    assert isinstance(found, GrayImage), found
    low, high = case["lowest"], case["lowest"] + 2**stored - 1
    ends = [value for value in case["padding"] or () if value is not None]
    is_padding = (values >= min(ends)) & (values <= max(ends)) if ends else np.zeros(SIDES, bool)
    if window == "voi" and stored > 8:
        anatomy = values[~is_padding] if not is_padding.all() else values
        low, high = int(anatomy.min()), int(anatomy.max())
    if isinstance(window, tuple):  # PS3.3 C.11.2.1.2.1: black up to centre - 0.5 - (width - 1) / 2
        low, high = window[0] - 0.5 - (window[1] - 1) / 2, window[0] - 0.5 + (window[1] - 1) / 2
    white = 255 if stored <= 8 else 65535
    expected = [
        0 if padded else level(value, low, high, white, inverted=case["inverted"])
        for value, padded in zip(values.ravel().tolist(), is_padding.ravel().tolist(), strict=True)
    ]
    off = np.abs(found.pixels.astype(int) - np.reshape(expected, SIDES))
    assert off.max() <= 1  # halves may be rounded either way
    if not shift and (not compressed or case["syntax"] == RLELossless):  # pydicom keeps the unused bits of the others
        np.testing.assert_array_equal(pixels_of(path), values)


ENCODERS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}


def compress(path: Path, syntax: str) -> None:
    """Compress whole cells, as an encoder does that does not know of unused bits."""
    dataset = pydicom.dcmread(path)
    own = {name: getattr(dataset, name) for name in ("BitsStored", "HighBit", "PixelRepresentation")}
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = 0
    dataset.compress(syntax, encoding_plugin=ENCODERS[syntax])
    for name, value in own.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


@settings(max_examples=100, deadline=None)
@given(
    syntax=st.sampled_from(NATIVE), frames=st.integers(1, 3), missing=st.integers(-4, 40),
    trailing=st.sampled_from([0, 900]), allocated=st.sampled_from([8, 16]), frame=st.integers(1, 3),
)  # fmt: skip
def test_read_image__pixel_data_of_any_length(
    tmp_path_factory: pytest.TempPathFactory,
    syntax: str,
    frames: int,
    missing: int,
    trailing: int,
    allocated: int,
    frame: int,
) -> None:
    """As pydicom says: what its element holds is read, and nothing is taken from behind it."""
    path = tmp_path_factory.getbasetemp() / "length.dcm"
    cells = np.random.default_rng(0).integers(0, 2**allocated, (frames, *SIDES)).astype(f"u{allocated // 8}")
    held = cells.tobytes()[: -missing or None] if missing > 0 else cells.tobytes() + bytes(-missing)
    write(
        path, cells, syntax, trailing, NumberOfFrames=frames, WindowCenter=2**allocated // 2, WindowWidth=2**allocated
    )
    dataset = pydicom.dcmread(path)
    dataset.PixelData = in_order(held, syntax, allocated)
    dataset.save_as(path)
    found = read_both(path, frame=frame)
    try:
        theirs = pixels_of(path).reshape(-1, *SIDES)[:frames]
    except ValueError:
        assert isinstance(found, str)
        return
    if frame > frames:
        assert isinstance(found, str)
        assert f"the file has {frames}" in found
    elif len(held) + len(held) % 2 < cells.nbytes:
        assert isinstance(found, str)
    else:
        assert isinstance(found, GrayImage), found
        np.testing.assert_array_equal(found.pixels, theirs[frame - 1])


@st.composite
def lookups(draw: st.DrawFn) -> dict[str, Any]:
    signed = draw(st.booleans())
    intercept = draw(st.sampled_from([0, -1024, 100]))
    count = draw(st.integers(2, 300))
    lowest = (-128 if signed else 0) + intercept
    first = draw(st.integers(lowest - 50, lowest + 300))
    return {
        "signed": signed, "intercept": intercept, "count": count, "first": first,
        "vr": draw(st.sampled_from(["US", "SS"])), "bits": draw(st.integers(8, 16)),
        "form": draw(st.sampled_from(["words", "packed", "list"])),
        "syntax": draw(st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])),
        "modality": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(case=lookups())
def test_read_image__tables_whatever_their_vr_and_form(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.dcm"
    rng = np.random.default_rng(case["seed"])
    bits = 8 if case["form"] == "packed" else case["bits"]
    entries = rng.integers(0, 2**bits, case["count"])
    entries[0] = 2**bits - 1
    cells = rng.integers(0, 256, SIDES).astype(np.uint8)
    values = cells.view(np.int8).astype(int) if case["signed"] else cells.astype(int)
    intercept = 0 if case["modality"] else case["intercept"]
    first = case["first"] - case["intercept"] + intercept
    order = ">" if case["syntax"] == ExplicitVRBigEndian else "<"
    item = Dataset()
    start = first % 2**16
    start = start - 2**16 if case["vr"] == "SS" and start >= 2**15 else start
    item.add(
        DataElement(0x00283002, case["vr"], [case["count"], start, bits if case["form"] != "packed" else case["bits"]])
    )
    if case["form"] == "list":
        item.add(DataElement(0x00283006, "US", entries.tolist()))
    elif case["form"] == "words":
        item.add(DataElement(0x00283006, "OW", entries.astype(f"{order}u2").tobytes()))
    else:
        packed = entries.astype(np.uint8).tobytes() + b"\0" * (case["count"] % 2)
        item.add(DataElement(0x00283006, "OW", np.frombuffer(packed, "<u2").astype(f"{order}u2").tobytes()))
    sequence = "ModalityLUTSequence" if case["modality"] else "VOILUTSequence"
    rescale = {"RescaleSlope": "1", "RescaleIntercept": str(intercept)} if intercept else {}
    write(path, cells, case["syntax"], PixelRepresentation=int(case["signed"]), **{sequence: [item]}, **rescale)
    found = read_both(path, window=(2.0 ** (bits - 1), 2.0**bits) if case["modality"] else "voi")
    assert isinstance(found, GrayImage), found
    low = (-128 if case["signed"] else 0) + intercept
    if first > low + 255 or first + case["count"] <= low:
        return  # no value reaches the table: nobody meant that
    looked_up = entries[np.clip(values + intercept - first, 0, case["count"] - 1)]
    white = 2**bits - 1
    if case["modality"]:
        expected = np.clip((looked_up - (white / 2)) / white + 0.5, 0, 1) * 255
    else:
        expected = looked_up / white * 255
    assert np.abs(found.pixels - expected).max() <= 1


CONTRADICTIONS = {
    "BitsAllocated": [1, 8, 12, 16, 24, 32, 64], "BitsStored": [0, 1, 8, 12, 16, 17, None],
    "HighBit": [0, 7, 11, 15, 31],
    "PixelRepresentation": [0, 1, 2], "SamplesPerPixel": [0, 1, 2, 3, 4], "Rows": [0, 1, 39, 41, 60000, [40, 40]],
    "Columns": [0, 35, 36, 37],
    "PhotometricInterpretation": ["MONOCHROME1", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "HSV", ""],
    "NumberOfFrames": [0, 1, 2, 10**6, -1, ""], "PlanarConfiguration": [0, 1, 2],
    "PixelAspectRatio": [[1, 2], [0, 1], [1, 10**6]],
    "PixelSpacing": [[0.5, 1], [0, 0], [1]], "WindowWidth": [0, -5, 1e300, 0.5], "WindowCenter": [[], 1e300],
    "RescaleSlope": [0, 1e300, -1], "PixelPaddingValue": [("US", 0)],
    "PixelPaddingRangeLimit": [("US", 7)],
    "VOILUTFunction": ["SIGMOID", "LINEAR_EXACT", "NONSENSE"],
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(CONTRADICTIONS)), st.integers(0, 6), min_size=1, max_size=4),
    syntax=st.sampled_from(NATIVE),
    left_out=st.none() | st.sampled_from(["Rows", "BitsStored", "HighBit", "SamplesPerPixel"]),
)  # fmt: skip
def test_read_image__any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, int], syntax: str, left_out: str | None
) -> None:
    """Whatever the header says, both ways of reading agree; what is read has pydicom's pixels, level for level."""
    path = tmp_path_factory.getbasetemp() / "header.dcm"
    cells = np.random.default_rng(1).integers(0, 2**16, SIDES).astype(np.uint16)
    tags = {name: CONTRADICTIONS[name][number % len(CONTRADICTIONS[name])] for name, number in changes.items()}
    write(path, cells, syntax, **tags)
    if left_out:
        dataset = pydicom.dcmread(path)
        delattr(dataset, left_out)
        dataset.save_as(path)
    found = read_both(path, window="full")
    if not isinstance(found, GrayImage) or found.notices[:1] == ("stored in colour; converted to luma (ITU-R BT.601)",):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path)
    if int(header.get("HighBit", header.BitsStored - 1)) != header.BitsStored - 1 or "PixelPaddingValue" in header:
        return  # the tests above
    if header.PhotometricInterpretation == "PALETTE COLOR" or float(header.get("RescaleSlope", 1)) != 1:
        return
    theirs = pixels_of(path).reshape(-1, *found.pixels.shape)[0].astype(int)
    lowest = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    shares = (theirs - lowest) / (2**header.BitsStored - 1)
    shares = 1 - shares if header.PhotometricInterpretation == "MONOCHROME1" else shares
    assert np.abs(found.pixels - shares * (2**found.bits - 1)).max() <= 0.51
