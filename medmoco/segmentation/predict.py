"""Write the masks that a trained network predicts, for the rows of a manifest, or for files and folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from medmoco.config import RunSettings
from medmoco.data.image_io.limits import limits_of
from medmoco.data.loading.preprocessing import without_data
from medmoco.data.loading.quarantine import where
from medmoco.errors import ImageError, SettingsError
from medmoco.evaluation.features.image_sets import files_in, volumes_in
from medmoco.evaluation.features.inputs import load_unlabelled
from medmoco.segmentation.masks.mask_files import stem_of, write_dicom_seg, write_mask
from medmoco.segmentation.segmenter import Segmenter, load_segmenter
from medmoco.utils.progress import track

Log = Callable[[str], None]


def predict_masks(
    settings: RunSettings, folder: Path, out: Path, *, split: str = "test", dicom_seg: bool = False, log: Log = print
) -> int:
    """Write a mask for each row of a split, named by its row, and return their number.

    Args:
        settings: Settings of the data and the machine; the preprocessing is that of the segmenter.
        folder: Folder of the segmenter, or the run that contains it.
        out: Folder for the masks.
        split: train, val or test; its masks are not used.
        dicom_seg: Write DICOM segmentations instead of NIfTI files, on the grids of volumes, or PNG files of images.
        log: Receives progress messages.

    Raises:
        CheckpointError: the folder cannot be used.
        ManifestError, DataError: the manifest or an image cannot be used; names the row.
        SettingsError: a mask cannot be written.
    """
    segmenter = load_segmenter(folder, settings)
    rows = load_unlabelled(segmenter.settings, split)
    log(f"segmenting {len(rows)} rows")
    _begin(out)
    numbers = zip(rows.files.tolist(), rows.frames.tolist(), rows.series, rows.rows.tolist(), strict=True)
    for position, (file, frame, series, row) in enumerate(track(list(numbers), len(rows), "images")):
        try:
            _write(segmenter, Path(file), out / f"{split}_row_{row:05}", dicom_seg, frame=frame, series=series)
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
    dicom_seg: bool = False,
    log: Log = print,
) -> tuple[int, int]:
    """Write a mask for each file, named like it; the log has the number of each file that cannot be read, and why.

    Args:
        images: Files and folders, whose images are found recursively.
        folder: Folder of the segmenter, or the run that contains it.
        out: Folder for the masks.
        settings: Settings of the machine; by default those that the segmenter needs.
        overrides: Texts such as "train.device=cpu", in place of `settings`.
        dicom_seg: See `predict_masks`.
        log: Receives progress messages.

    Returns:
        The number of files, and of those that cannot be read.

    Raises:
        CheckpointError: the folder cannot be used.
        ImageError: a folder contains no images.
        SettingsError: two files have the same name, or a mask cannot be written.
    """
    machine = settings or without_data(overrides)
    segmenter = load_segmenter(folder, machine)
    files: list[Path] = []
    for image in images:
        try:
            files += volumes_in(image) if segmenter.facts.data.dimensions == 3 else files_in(image, bands=False)
        except ImageError as error:
            raise ImageError(f"--images {image}: {error}") from None
    files = list(dict.fromkeys(files))
    names = [stem_of(file) for file in files]
    if len(set(names)) < len(names):
        raise SettingsError(
            "--images: several files are named alike, and so would their masks be;\nname one folder at a time"
        )
    _begin(out)
    bad = 0
    named = list(zip(files, names, strict=True))
    for number, (file, name) in enumerate(track(named, len(files), "images"), start=1):
        try:
            _write(segmenter, file, out / name, dicom_seg)
        except ImageError as error:
            bad += 1
            log(f"file {number} of {len(files)}: {error if file.exists() else 'the file does not exist'}")
    return len(files), bad


def _begin(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {out} cannot be a folder for masks: {error.strerror}") from None


def _write(segmenter: Segmenter, file: Path, out: Path, dicom_seg: bool, *, frame: int = 1, series: str = "") -> None:
    """Write the mask of one image, whose name gets the suffix of its format."""
    numbers, affine = segmenter.segment(file, frame=frame, series=series)
    classes = segmenter.classes
    try:
        if dicom_seg:
            limits, mask = limits_of(segmenter.settings.data), out.with_name(f"{out.name}.dcm")
            write_dicom_seg(mask, numbers, file, classes, series=series, limits=limits)
        else:
            write_mask(out, numbers, affine, classes, like=file)
    except OSError as error:  # without the name, which may be that of a patient
        raise SettingsError(f"no mask can be written to --out {out.parent}: {error.strerror}") from None
