"""The shipped prepare.py against what medmoco trains, evaluates and predicts with, to the bit."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmoco.config import DataSettings, ViewSettings
from medmoco.data.augment.normalisation import to_float
from medmoco.data.augment.views import whole_view
from medmoco.data.image_io.images import read_canvas, read_image, to_canvas
from medmoco.data.loading.loading import whole_views
from medmoco.datasets.phantoms.phantom import phantom
from medmoco.errors import ImageError
from tests.helpers.dicom_files import RAMP12, save_dicom, table
from tests.helpers.shipped import shipped

prepare = shipped()

Contract = dict[str, Any]


def make_contract(window: Any = "voi", size: int = 224, canvas: int = 256, bits: int = 8) -> Contract:
    return {
        "grayscale": {"window": window},
        "canvas": {"longer_side": canvas, "white": 2**bits - 1},
        "resize": {"height": size, "width": size},
        "normalise": {"mean": 0.485, "std": 0.229},
    }


def ours(file: Path, contract: Contract, frame: int = 1) -> NDArray[np.float32]:
    """What medmoco trains, evaluates and predicts with."""
    window = contract["grayscale"]["window"]
    at_least = contract["canvas"]["longer_side"]
    image = read_image(
        file, frame=frame, window=window if isinstance(window, str) else tuple(window), at_least=at_least
    )
    bits = contract["canvas"]["white"].bit_length()
    canvas = to_canvas(image, contract["canvas"]["longer_side"], bits)
    view = torch.from_numpy(whole_view(canvas, contract["resize"]["height"]))[None, None]
    normalise = ViewSettings(**contract["normalise"])
    out: NDArray[np.float32] = to_float(view, normalise, torch.device("cpu"), channels_last=False)[0].numpy()
    return out


def check(file: Path, contract: Contract, frame: int = 1) -> None:
    theirs = prepare.image(file, contract, frame)
    assert theirs.dtype == np.float32
    np.testing.assert_array_equal(theirs, ours(file, contract, frame))


def group(**values: Any) -> Dataset:
    outer = Dataset()
    for name, tags in values.items():
        item = Dataset()
        for key, value in tags.items():
            setattr(item, key, value)
        setattr(outer, name, [item])
    return outer


def test_image__real_dicom_files_are_equal_to_the_bit(shared: Path) -> None:
    equal = []
    with (shared / "data/dicom/index.csv").open() as stream:
        names = [record["file"] for record in csv.DictReader(stream)]
    for name in names:
        file = shared / "data/dicom" / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, on what is odd in a header
            try:
                expected = ours(file, make_contract())
            except ImageError:
                continue
            np.testing.assert_array_equal(prepare.image(file, make_contract()), expected, err_msg=name)
        equal.append(name)
    assert len(equal) == 26  # the other six are refused: cut off, no image, or no free decoder


@pytest.mark.parametrize("window", ["voi", "full", [900, 1500], [600.5, 1]])
@pytest.mark.parametrize("bits", [8, 16])
def test_image__windows_and_polarity(tmp_path: Path, window: Any, bits: int) -> None:
    contract = make_contract(window, size=32, canvas=48, bits=bits)
    signed = RAMP12.astype(np.int16) - 2048
    padded = {"PixelPaddingValue": 4095}
    voi = {"WindowCenter": [1000, 40], "WindowWidth": [1500, 400]}
    files = {
        "plain": (RAMP12, {}),
        "padded": (RAMP12, padded),
        "window": (RAMP12, voi),
        "inverted": (RAMP12, {"PhotometricInterpretation": "MONOCHROME1", **voi}),
        "sigmoid": (RAMP12, {"VOILUTFunction": "SIGMOID", **voi}),
        "exact": (RAMP12, {"VOILUTFunction": "LINEAR_EXACT", **voi}),
        "rescaled": (signed, {"RescaleSlope": 0.5, "RescaleIntercept": -100, **voi}),
        "voi table": (RAMP12, {"VOILUTSequence": table(256, 1000, 8, bytes(range(256)))}),
        "modality table": (signed, {"ModalityLUTSequence": table(2000, -1000, 12, list(range(2000)))}),
    }
    for name, (pixels, tags) in files.items():
        check(save_dicom(tmp_path / name, pixels, **tags), contract)


@pytest.mark.parametrize("read", [prepare.gray, prepare.colours])
def test_gray_and_colours__take_a_window_as_json_holds_it(tmp_path: Path, read: Any) -> None:
    file = save_dicom(tmp_path / "a", RAMP12, WindowCenter=2000, WindowWidth=400)
    pixels, white = read(file, [900, 1500])
    assert white == read(file, (900, 1500))[1]
    assert np.array_equal(pixels, read(file, (900, 1500))[0])
    assert not np.array_equal(pixels, read(file)[0])


def test_image__8_bits_colour_and_frames(tmp_path: Path) -> None:
    contract = make_contract(size=32, canvas=100)
    generator = np.random.default_rng(0)
    check(save_dicom(tmp_path / "a", generator.integers(0, 90, (40, 60), np.uint8), 8), contract)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    check(save_dicom(tmp_path / "b", generator.integers(0, 256, (20, 30, 3), np.uint8), 8, **tags), contract)
    everywhere = group(FrameVOILUTSequence={"WindowCenter": 4096, "WindowWidth": 8192})
    each = [group(PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": 0}) for slope in (1, 2)]
    file = save_dicom(
        tmp_path / "c", np.stack([RAMP12, RAMP12]), NumberOfFrames=2, SharedFunctionalGroupsSequence=[everywhere],
        PerFrameFunctionalGroupsSequence=each,
    )  # fmt: skip
    check(file, contract, 1)
    check(file, contract, 2)
    assert not np.array_equal(prepare.image(file, contract, 1), prepare.image(file, contract, 2))


@pytest.mark.parametrize("shape", [(301, 200), (131, 90), (40, 47), (64, 64), (500, 3)])
@pytest.mark.parametrize("kind", ["gray8", "gray16", "colour", "jpeg"])
def test_image__plain_files_of_any_shape(tmp_path: Path, shape: tuple[int, int], kind: str) -> None:
    small = np.random.default_rng(3).random((6, 5, 3) if kind == "colour" else (6, 5))
    soft = cv2.resize(small, shape[::-1]) * (65535 if kind == "gray16" else 255)
    file = tmp_path / ("image.jpg" if kind == "jpeg" else "image.png")
    cv2.imwrite(str(file), soft.astype(np.uint16 if kind == "gray16" else np.uint8))
    for canvas, size in ((256, 224), (100, 32), (48, 48)):
        check(file, make_contract(size=size, canvas=canvas))
    if kind == "gray16":
        check(file, make_contract([30000, 20000]))


def test_image__phantoms(tmp_path: Path) -> None:
    phantom(tmp_path / "phantoms", patients=3, image_size=96)
    files = [file for file in sorted((tmp_path / "phantoms").rglob("*")) if file.suffix in (".dcm", ".png")]
    assert {file.suffix for file in files} == {".dcm", ".png"}
    for file in files:
        check(file, make_contract(size=64, canvas=80))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"II*\0 a TIFF file", "TIFF file has a directory that cannot be read"),
        (b"\x89PNG\r\n\x1a\n cut off", "header cannot be read"),
        (b"no image at all" * 20, "its content is not PNG, JPEG, TIFF or DICOM"),
    ],
)
def test_image__refuses_what_training_refuses(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        prepare.image(tmp_path / "a", make_contract())


def test_image__refuses_more_than_16_bits_and_tables_cut_off(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        prepare.image(save_dicom(tmp_path / "a", RAMP12.astype(np.uint32), 32), make_contract())
    short = {"VOILUTSequence": table(256, 0, 16, list(range(100)))}
    with pytest.raises(ValueError, match="look-up table"):
        prepare.image(save_dicom(tmp_path / "b", RAMP12, **short), make_contract())


def ours_of(file: Path, contract: Contract, **data: Any) -> NDArray[np.float32]:
    settings = DataSettings(manifest=Path(), root=".", canvas_size=contract["canvas"]["longer_side"], **data)
    canvas, _ = read_canvas(file, 1, settings)
    views = torch.from_numpy(whole_views([canvas], np.array([0]), size=contract["resize"]["height"]))
    normalise = ViewSettings(**contract["normalise"])
    out: NDArray[np.float32] = to_float(views, normalise, torch.device("cpu"), channels_last=False)[0].numpy()
    return out


@pytest.mark.parametrize("kind", ["colour.png", "colour.jpg", "gray.png", "ybr.dcm"])
def test_image__colours_are_those_of_training(tmp_path: Path, kind: str) -> None:
    photo = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 7, 3), np.uint8), (90, 70))
    file = tmp_path / kind
    if kind == "ybr.dcm":
        save_dicom(file, photo, 8, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0)
    else:
        cv2.imwrite(str(file), photo[..., 0] if kind == "gray.png" else photo)
    contract = make_contract(size=32, canvas=64)
    contract["colour"] = contract.pop("grayscale")
    contract["normalise"] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    theirs, own = prepare.image(file, contract), ours_of(file, contract, channels="rgb")
    assert theirs.shape == (3, 32, 32)
    assert np.abs(theirs - own).max() <= 1e-6
    means = theirs.mean((1, 2)) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    assert (np.ptp(means) < 1e-5) == (kind == "gray.png")


@pytest.mark.parametrize("ranges", [None, [[0.1, 1000.0]], [[0.1, 10.0 * (k + 1)] for k in range(5)]])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_image__bands_are_those_of_training(tmp_path: Path, scale: str, ranges: list[list[float]] | None) -> None:
    values = 10 ** np.random.default_rng(2).normal(0, 1, (5, 40, 50)).astype(np.float32)
    values[:, 3, 4] = -1
    np.save(tmp_path / "bands.npy", values)
    contract = make_contract(size=32, canvas=64)
    contract["bands"] = {"channels": 5, "scale": scale, "ranges": ranges}
    contract["normalise"] = {"mean": [0.1, 0.2, 0.3, 0.4, 0.5], "std": 0.25}
    given = {"scale": scale, "band_ranges": ranges and tuple(map(tuple, ranges))}
    own = ours_of(tmp_path / "bands.npy", contract, channels=5, **given)
    np.testing.assert_array_equal(prepare.image(tmp_path / "bands.npy", contract), own)
