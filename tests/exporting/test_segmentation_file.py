from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medmoco.exporting.contract import preprocessing
from medmoco.exporting.standalone import standalone_source
from medmoco.exporting.subject import subject_of
from medmoco.segmentation.masks.mask_files import write_nifti, write_png
from medmoco.segmentation.segmenter import Segmenter
from tests.helpers.blobs import LARGE, SMALL
from tests.helpers.dicom_files import save_dicom
from tests.helpers.segmenters import make_segmenter

CASES: dict[str, tuple[int, list[str]]] = {
    "images": (2, []),
    "images, smaller windows, 16 bits": (2, ["data.canvas_size=48", "data.bit_depth=16"]),
    "colours": (2, ["data.channels=rgb", "views.mean=[0.4, 0.5, 0.6]", "views.std=[0.2, 0.3, 0.25]"]),
    "colours, one mean": (2, ["data.channels=rgb"]),
    "volumes": (3, []),
    "volumes of MONAI": (3, ["model.backbone=monai/resnet10_quarter", "views.size=32", "segmentation.overlap=0.25"]),
}


@pytest.fixture(scope="module")
def shipped() -> ModuleType:
    """The prepare.py of segmentation networks, as the module that a project imports."""
    module = ModuleType("shipped_masks")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(standalone_source(masks=True), "prepare.py", "exec"), module.__dict__)
    return module


def contract_of(segmenter: Segmenter, folder: Path) -> Any:
    """Return preprocessing.json as read from a file."""
    folder.mkdir(exist_ok=True)
    return json.loads(json.dumps(preprocessing(subject_of(segmenter), {}, folder)))


def write_images(folder: Path, dimensions: int) -> list[Path]:
    """Write images that are smaller and larger than a window, in different formats."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    if dimensions == 2:
        small = rng.integers(0, 256, (6, 5, 3), np.uint8)
        cv2.imwrite(str(folder / "a.png"), cv2.resize(small, (90, 131)))
        cv2.imwrite(str(folder / "b.jpg"), cv2.resize(small, (33, 20))[..., 0])
        save_dicom(folder / "c.dcm", rng.integers(0, 4096, (40, 70), np.uint16))
        large = cv2.resize(small[..., 1], (300, 200))  # for a canvas, readers would reduce these while decoding
        cv2.imwrite(str(folder / "d.jpg"), large)
        save_dicom(folder / "e.dcm", large.astype(np.uint16) * 16)
    else:
        oblique = np.diag([-1.2, 0.9, 2.1, 1])
        oblique[:3, 3] = 7, -8, 9
        for name, shape in {"a.nii.gz": (14, 30, 12), "b.nii": (40, 41, 35)}.items():
            values = cv2.resize(rng.normal(size=(6, 6 * shape[2])), (shape[1] * shape[2], shape[0]))
            nibabel.save(nibabel.Nifti1Image(values.reshape(shape).astype(np.float32), oblique), folder / name)
        np.save(folder / "c.npy", rng.random((20, 25, 30)))
    return sorted(folder.iterdir())


def network_of(segmenter: Segmenter) -> Any:
    graph = subject_of(segmenter).graph

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = graph(torch.from_numpy(windows)).numpy()
        return probabilities

    return run


@pytest.mark.parametrize("case", CASES)
def test_segment__masks_are_those_of_medmoco(shipped: ModuleType, tmp_path: Path, case: str) -> None:
    dimensions, overrides = CASES[case]
    segmenter = make_segmenter(tmp_path / "segmenter", dimensions, *overrides)
    contract, network = contract_of(segmenter, tmp_path / "contract"), network_of(segmenter)
    found = set[int]()
    for image in write_images(tmp_path / "images", dimensions):
        expected = segmenter.segment(image)
        mask = shipped.segment(image, contract, network)
        np.testing.assert_array_equal(mask.numbers, expected.numbers)
        assert (mask.affine is None) == (expected.affine is None) == (dimensions == 2)
        if expected.affine is not None:
            np.testing.assert_array_equal(mask.affine, expected.affine)
        found |= set(np.unique(mask.numbers).tolist())
    assert len(found) > 1  # otherwise anything would agree


@pytest.mark.parametrize("dimensions", [2, 3])
def test_save__files_are_those_of_medmoco(shipped: ModuleType, tmp_path: Path, dimensions: int) -> None:
    segmenter = make_segmenter(tmp_path / "segmenter", dimensions)
    contract = contract_of(segmenter, tmp_path / "contract")
    image = write_images(tmp_path / "images", dimensions)[0]
    mask = shipped.segment(image, contract, network_of(segmenter))
    saved = shipped.save(mask, tmp_path / "out" / "deep", contract, like=image)
    wanted = tmp_path / "wanted.nii.gz" if dimensions == 3 else tmp_path / "wanted.png"
    if mask.affine is None:
        assert saved.name == "a.png"
        write_png(wanted, mask.numbers, segmenter.classes)
        values = cv2.imread(str(saved), cv2.IMREAD_UNCHANGED)
    else:
        assert saved.name == "a.nii.gz"
        write_nifti(wanted, mask.numbers, mask.affine, segmenter.classes, like=image)
        values = np.asarray(nibabel.load(saved).dataobj)
    assert saved.read_bytes() == wanted.read_bytes()
    assert set(np.unique(values).tolist()) <= {0, LARGE, SMALL}


def test_segment__refuses_with_a_value_error(shipped: ModuleType, tmp_path: Path) -> None:
    for dimensions in (2, 3):
        contract = contract_of(make_segmenter(tmp_path / str(dimensions), dimensions), tmp_path / "contract")
        (tmp_path / "note.txt").write_text("no image")
        for name in ("note.txt", "missing.png" if dimensions == 2 else "missing.nii"):
            with pytest.raises((ValueError, OSError)) as raised:
                shipped.segment(tmp_path / name, contract, None)
            assert dimensions == 2 or isinstance(raised.value, shipped.ImageError)


@pytest.mark.slow
def test_segment__without_medmoco(tmp_path: Path) -> None:
    segmenter = make_segmenter(tmp_path / "segmenter", 3)
    contract = contract_of(segmenter, tmp_path / "contract")
    contract["windows"]["size"] = [64] * 3
    write_images(tmp_path / "images", 3)
    (tmp_path / "prepare.py").write_text(standalone_source(masks=True))
    (tmp_path / "preprocessing.json").write_text(json.dumps(contract))
    script = """
import sys
sys.modules["medmoco"] = None
import json, prepare, numpy
contract = json.load(open("preprocessing.json"))
def bright(windows):
    return numpy.concatenate([-windows, windows, 0 * windows - 9], 1)
mask = prepare.segment("images/a.nii.gz", contract, bright)
prepare.save(mask, "masks", contract, like="images/a.nii.gz")
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env={"PYTHONPATH": ""})
    shown, mask = (np.asarray(nibabel.load(tmp_path / name / "a.nii.gz").dataobj) for name in ("images", "masks"))
    assert set(np.unique(mask).tolist()) == {0, LARGE}
    assert shown[mask == LARGE].mean() > shown[mask == 0].mean() + 0.5 * shown.std()
