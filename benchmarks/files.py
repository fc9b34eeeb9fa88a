"""Two 224-pixel views per image on one core from files of 1,024 pixels, read each time or packed before.

The published recipe and, if installed, albumentations read DICOM files through an adapter, as their users write it.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from benchmarks.turns import report, seconds_per_round
from benchmarks.views import CANVAS, DATA, ours, published
from medmoco.config import DataSettings
from medmoco.data.image_io.images import read_canvas
from medmoco.data.loading.loading import canvas_reader
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack

IMAGES, ROUNDS, SIDE = 8, 5, 1024
COPIES = 32  # the pack lists each image so often, that a round is long enough to time
KINDS = {
    "png": "PNG",
    "jpg": "JPEG of quality 95",
    "raw.dcm": "DICOM of 12 bits, uncompressed",
    "j2k.dcm": "DICOM of 12 bits, lossless JPEG 2000",
}
PUBLISHED = "published recipe on the files"
ALBUMENTATIONS = "albumentations, grayscale, on the files"

Gray = NDArray[np.uint8]


def run() -> None:
    """Print a table for each kind of file."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        files = {kind: _write_images(Path(name), kind) for kind in KINDS}
        from_pack = _pack(Path(name), files["png"])  # where its canvases come from does not change how fast they are
        for kind, title in KINDS.items():
            contestants: dict[str, Callable[[], object]] = {PUBLISHED: partial(_publish, files[kind])}
            if importlib.util.find_spec("albumentations"):
                contestants[ALBUMENTATIONS] = partial(_albumentations(), files[kind])
            for recipe in ("moco_v2", "xray"):
                contestants[f"medmoco on the files, {recipe}"] = partial(_from_files, files[kind], recipe)
                contestants[f"medmoco from a pack, {recipe}"] = partial(from_pack, recipe)
            times = seconds_per_round(contestants, ROUNDS)
            for contestant, seconds in times.items():
                if "pack" in contestant:
                    times[contestant] = [second / COPIES for second in seconds]
            report(f"{title}, one core", times, per_round=IMAGES, unit="images", reference=PUBLISHED)


def _publish(files: Sequence[Path]) -> None:
    recipe = published()
    for file in files:
        image = Image.fromarray(_adapted(file)) if file.suffix == ".dcm" else Image.open(file)
        image = image.convert("RGB")
        torch.stack([recipe(image), recipe(image)])


def _albumentations() -> Callable[[Sequence[Path]], None]:
    """The published recipe without what does nothing to one channel, by albumentations on one channel."""
    named: Any = importlib.import_module("albumentations")
    recipe = named.Compose([
        named.RandomResizedCrop((224, 224), scale=(0.2, 1.0)),
        named.ColorJitter(0.4, 0.4, 0, 0, p=0.8),
        named.GaussianBlur((13, 13), sigma_limit=(0.1, 2.0), p=0.5),
        named.HorizontalFlip(p=0.5),
        named.Normalize([0.5], [0.25]),
    ])  # fmt: skip

    def work(files: Sequence[Path]) -> None:
        for file in files:
            image = _adapted(file) if file.suffix == ".dcm" else np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
            for _ in range(2):
                torch.from_numpy(recipe(image=image[..., None])["image"])

    return work


def _adapted(file: Path) -> Gray:
    """Return a DICOM image from minimum to maximum, without its window."""
    pixels = dcmread(file).pixel_array.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) * (255 / (high - low))).astype(np.uint8)


def _from_files(files: Sequence[Path], recipe: str) -> None:
    ours([read_canvas(file, 1, DATA)[0] for file in files], recipe)


def _pack(folder: Path, files: Sequence[Path]) -> Callable[[str], None]:
    """Pack the files, each listed COPIES times under a name of its own, and return what makes the views of all."""
    lines = [["Path"]]
    for copy in range(COPIES):
        for file in files:
            name = f"{copy}-{file.name}"
            (folder / name).hardlink_to(file)
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


def _write_images(folder: Path, kind: str) -> list[Path]:
    """Noisy gradients with structure: what matters is their size and that they do not compress to nothing."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(IMAGES):
        smooth = cv2.resize(rng.random((32, 32)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        shares = np.clip(0.16 + 0.63 * smooth + rng.normal(0, 3 / 255, (SIDE, SIDE)), 0, 1)
        files.append(folder / f"{number}.{kind}")
        if kind.endswith("dcm"):
            _write_dicom(files[-1], (shares * 4095).astype(np.uint16), encoded=kind == "j2k.dcm")
        else:
            Image.fromarray((shares * 255).astype(np.uint8)).save(files[-1], quality=95)  # PNG ignores the quality
    return files


def _write_dicom(file: Path, pixels: NDArray[np.uint16], *, encoded: bool) -> None:
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
    dataset["PixelData"].VR = "OW"
    if encoded:
        dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")  # by OpenJPEG
    dataset.save_as(file, enforce_file_format=True)
