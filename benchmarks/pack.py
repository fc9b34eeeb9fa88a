"""Two 224-pixel views per image on one core, from a pack, against the published recipe on the 1024-pixel files."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from benchmarks.turns import report, seconds_per_round
from benchmarks.views import ours, published
from medmoco.config import DataSettings
from medmoco.data.loading.loading import canvas_reader
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack

IMAGES, ROUNDS, SIDE, CANVAS = 8, 5, 1024, 256
COPIES = 32  # the pack lists each image so often, that a round is long enough to time

Reader = Callable[[Path], Image.Image]


def run() -> None:
    """Print a table for each kind of file."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    readers: dict[str, Reader] = {"png": lambda file: Image.open(file).convert("RGB"), "dcm": _read_dicom}
    kinds = {"png": "PNG files", "dcm": "lossless JPEG 2000 DICOM files of 12 bits"}
    with tempfile.TemporaryDirectory() as name:
        files = {suffix: _write_images(Path(name), suffix) for suffix in kinds}
        from_pack = _pack(Path(name), files["png"])  # where its canvases come from does not change how fast they are
        for suffix, kind in kinds.items():
            contestants = {
                "published recipe on the files": partial(_publish, published(), readers[suffix], files[suffix]),
                "medmoco from a pack, moco_v2": partial(from_pack, "moco_v2"),
                "medmoco from a pack, xray": partial(from_pack, "xray"),
            }
            times = seconds_per_round(contestants, ROUNDS)
            times["published recipe on the files"] = [COPIES * t for t in times["published recipe on the files"]]
            title = f"two views from {SIDE}-pixel {kind}, one core"
            report(title, times, per_round=IMAGES * COPIES, unit="images", reference="published recipe on the files")


def _publish(recipe: Callable[[Image.Image], torch.Tensor], read: Reader, files: list[Path]) -> None:
    for file in files:
        image = read(file)
        torch.stack([recipe(image), recipe(image)])


def _read_dicom(file: Path) -> Image.Image:
    """The adapter that a user of the published recipe would write: pydicom, minimum to maximum, RGB."""
    pixels = dcmread(file).pixel_array.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    return Image.fromarray(((pixels - low) * (255 / (high - low))).astype(np.uint8)).convert("RGB")


def _pack(folder: Path, files: list[Path]) -> Callable[[str], None]:
    """Pack the files, each listed COPIES times under a name of its own, and return what makes the views of all."""
    lines = [["Path"]]
    for copy in range(COPIES):
        for file in files:
            name = f"{copy}-{file.name}"
            (folder / name).symlink_to(file)
            lines.append([name])
    with (folder / "train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    data = DataSettings(manifest=folder, root=str(folder), canvas_size=CANVAS, workers=1)
    make_pack(data, folder / "pack", lambda _: None)
    data = data.model_copy(update={"pack": str(folder / "pack")})
    read = canvas_reader(load_manifest(data, ("train",))["train"], data)
    order = np.random.default_rng(0).permutation(len(lines) - 1)

    def work(recipe: str) -> None:
        for samples in np.split(order, len(order) // 64):
            ours(read(samples)[0], recipe)

    return work


def _write_images(folder: Path, suffix: str) -> list[Path]:
    """Noisy gradients with structure, of 8 bits as PNG and 12 as DICOM."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(IMAGES):
        smooth = cv2.resize(rng.random((32, 32)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        shares = np.clip(0.16 + 0.63 * smooth + rng.normal(0, 3 / 255, (SIDE, SIDE)), 0, 1)
        files.append(folder / f"{number}.{suffix}")
        if suffix == "png":
            Image.fromarray((shares * 255).astype(np.uint8)).save(files[-1])
        else:
            _write_dicom(files[-1], (shares * 4095).astype(np.uint16))
    return files


def _write_dicom(file: Path, pixels: NDArray[np.uint16]) -> None:
    """Write 12-bit pixels as lossless JPEG 2000, really encoded by OpenJPEG."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[file.name])
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = pixels.tobytes()
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    dataset.save_as(file, enforce_file_format=True)
