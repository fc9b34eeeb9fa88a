"""Write the masks that a trained network predicts, for the rows of a manifest, or for files and folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from medmoco.config import RunSettings, load
from medmoco.data.loading.preprocessing import NO_DATA
from medmoco.data.loading.quarantine import where
from medmoco.errors import ImageError, SettingsError
from medmoco.evaluation.features.image_sets import files_in, volumes_in
from medmoco.evaluation.features.inputs import load_unlabelled
from medmoco.segmentation.masks.mask_files import write_dicom_seg, write_nifti, write_png
from medmoco.segmentation.segmenter import Segmenter, load_segmenter
from medmoco.utils.progress import track

Format = Literal["auto", "dicom-seg"]
Log = Callable[[str], None]


def predict_masks(
    settings: RunSettings, folder: Path, out: Path, *, split: str = "test", to: Format = "auto", log: Log = print
) -> int:
    """Write a mask for each row of a split, named by its row, and return their number.

    Args:
        settings: Settings of the data and the machine; the preprocessing is that of the segmenter.
        folder: Folder of the segmenter, or the run that contains it.
        out: Folder for the masks.
        split: train, val or test; its masks are not used.
        to: "auto" writes NIfTI on the grid of volumes, and PNG for images; "dicom-seg" DICOM segmentations.
        log: Receives progress messages.

    Raises:
        CheckpointError: the folder cannot be used.
        ManifestError, DataError: the manifest or an image cannot be used; names the row.
        SettingsError: a mask cannot be written.
    """
    segmenter = load_segmenter(folder, settings)
    own = segmenter.settings.model_copy(
        update={"data": segmenter.settings.data.model_copy(update={"pack": None, "labels": {}})}
    )
    rows = load_unlabelled(own, split)
    log(f"segmenting {len(rows)} rows")
    _begin(out)
    numbers = zip(rows.files.tolist(), rows.frames.tolist(), rows.series, rows.rows.tolist(), strict=True)
    for position, (file, frame, series, row) in enumerate(track(list(numbers), len(rows), "images")):
        try:
            _write(segmenter, Path(file), out / f"{split}_row_{row:05}", to, frame=frame, series=series)
        except ImageError as error:
            raise ImageError(f"{where(rows, position)}: {error}") from None
    return len(rows)


def predict_masks_of_files(
    images: Sequence[Path],
    folder: Path,
    out: Path,
    *,
    settings: RunSettings | None = None,
    overrides: Sequence[str] = (),
    to: Format = "auto",
    log: Log = print,
) -> tuple[int, int]:
    """Write a mask for each file, named like it; those that cannot be read are logged, and the others written.

    Args:
        images: Files and folders, whose images are found recursively.
        folder: Folder of the segmenter, or the run that contains it.
        out: Folder for the masks.
        settings: Settings of the machine; by default those that the segmenter needs.
        overrides: Texts such as "train.device=cpu", in place of `settings`.
        to: See `predict_masks`.
        log: Receives progress messages.

    Returns:
        The number of files, and of those that cannot be read.

    Raises:
        CheckpointError: the folder cannot be used.
        ImageError: a folder contains no images.
        SettingsError: two files have the same name, or a mask cannot be written.
    """
    machine = settings or load({"out": ".", "data": {"manifest": str(NO_DATA), "root": "."}}, overrides)
    segmenter = load_segmenter(folder, machine)
    files: list[Path] = []
    for image in images:
        try:
            files += volumes_in(image) if segmenter.facts.data.dimensions == 3 else files_in(image, bands=False)
        except ImageError as error:
            raise ImageError(f"--images {image}: {error}") from None
    files = list(dict.fromkeys(files))
    names = [_stem(file) for file in files]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"--images: several files are named {repeated[0]}; segment their folders one at a time")
    _begin(out)
    bad = 0
    for file, name in track(list(zip(files, names, strict=True)), len(files), "images"):
        try:
            _write(segmenter, file, out / name, to)
        except ImageError as error:
            bad += 1
            log(f"{file}: {error if file.exists() else 'the file does not exist'}")
    return len(files), bad


def _begin(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {out} cannot be a folder for masks: {error.strerror}") from None


def _stem(file: Path) -> str:
    """Return the name of a file without its suffixes; of a folder, as it is."""
    if file.is_dir():
        return file.name
    return file.name.removesuffix(".gz").rsplit(".", 1)[0] if file.suffix == ".gz" else file.stem


def _write(segmenter: Segmenter, file: Path, out: Path, to: Format, *, frame: int = 1, series: str = "") -> None:
    """Write the mask of one image, whose name gets the suffix of its format."""
    numbers, affine = segmenter.segment(file, frame=frame, series=series)
    named = {"dicom-seg": ".dcm", "auto": ".png" if affine is None else ".nii.gz"}
    mask = out.with_name(out.name + named[to])
    try:
        if to == "dicom-seg":
            write_dicom_seg(mask, numbers, file, segmenter.classes, series=series)
        elif affine is None:
            write_png(mask, numbers, segmenter.classes)
        else:
            write_nifti(mask, numbers, affine, segmenter.classes, like=file)
    except OSError as error:
        raise SettingsError(f"{mask} cannot be written: {error.strerror}") from None
