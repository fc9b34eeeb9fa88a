"""Export a trained network: weights in one or more formats, how to prepare images, verification data, model card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.data.augment.normalisation import to_float
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.supervised.classifier import Classifier, load_classifier
from medmoco.evaluation.supervised.classifier_folder import is_classifier
from medmoco.exporting.contract import files_in, preprocessing
from medmoco.exporting.formats import (
    Format,
    detectron2_file,
    huggingface,
    monai_bundle,
    nnunet_folder,
    onnx_file,
    program_file,
    safetensors_file,
    timm_file,
    torchvision_file,
)
from medmoco.exporting.parity import (
    CASES,
    SUMS,
    SYNTHETIC_IMAGES,
    SYNTHETIC_VOLUMES,
    Floats,
    NotInstalledError,
    compare,
    save_cases,
    synthetic_views,
)
from medmoco.exporting.scan import folder_names, refuse_names
from medmoco.exporting.sources import Network, Surroundings, Warn, surroundings
from medmoco.exporting.standalone import standalone_source
from medmoco.exporting.subject import NOT_STATED, Subject, subject_of
from medmoco.segmentation.segmenter import is_segmenter, load_segmenter
from medmoco.training.runlog import print_warning, write_json
from medmoco.utils.files import PathLike, sha256_of

FORMATS: dict[str, Format] = {
    "safetensors": safetensors_file,
    "timm": timm_file,
    "torchvision": torchvision_file,
    "detectron2": detectron2_file,
    "huggingface": huggingface,
    "monai-bundle": monai_bundle,
    "nnunet": nnunet_folder,
    "onnx": onnx_file,
    "program": program_file,
}
DEFAULT, DEFAULT_OF_SEGMENTERS = ("safetensors", "onnx"), ("onnx",)
ALL = "all"


def export(
    network: PathLike | Network,
    out: PathLike,
    formats: Sequence[str] | None = None,
    *,
    licence: str = NOT_STATED,
    warn: Warn = print_warning,
) -> list[Path]:
    """Write a network with everything needed to use it elsewhere.

    The files appear together, after each format has been loaded in a new process and has reproduced the network's
    outputs, and none of them contains a name of a patient, image, user or machine.

    Args:
        network: Run folder, classifier folder, run folder of `segment`, or what `load_encoder`, `load_classifier` or
            `load_segmenter` returned.
        out: New or empty folder.
        formats: Names in FORMATS, or "all" for every format that can hold the network; by default safetensors and onnx,
            of a segmentation network onnx.
        licence: Licence of the weights, for the card.
        warn: Receives a line for each format that "all" skips, for a manifest that cannot be read, and for an encoder
            with `evaluate.mirror`.

    Returns:
        The files: weights, preprocessing.json, prepare.py, parity.json, MODEL_CARD.md and others.

    Raises:
        SettingsError: `out` is not empty or cannot be written, or a format cannot hold the network.
        CheckpointError: the network cannot be loaded, or an exported file does not reproduce its outputs, or contains a
            name.

    Examples:
        >>> import medmoco
        >>> files = medmoco.export("runs/phantoms", "encoder-export", ["safetensors"])
        >>> sorted(file.name for file in files)[0]
        'MODEL_CARD.md'
    """
    if isinstance(network, str | os.PathLike):
        network = _loaded(Path(network))
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; choose another for the export")
    if isinstance(network, Classifier) and network.encoder.preprocessing.dimensions == 3:
        raise SettingsError("a classifier of volumes cannot be exported; export its encoder, with the run as --run")
    subject = subject_of(network, licence)
    chosen = _chosen(formats or (DEFAULT_OF_SEGMENTERS if subject.segmenter else DEFAULT), subject, warn)
    if subject.head is None and subject.preprocessing.mirror:
        warn(
            "the scores of this encoder are of the mean features of each image and its mirror image (evaluate.mirror); "
            "the exported files return those of the image alone, so average both to reproduce the scores"
        )
    if subject.scored_stages > 1:
        warn(
            f"the scores of this encoder are of features of its last {subject.scored_stages} stages (evaluate.stages); "
            "the exported files return those of the last stage alone"
        )
    known = surroundings(network, subject, warn)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".medmoco-export-") as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            _fill(folder, subject, known, chosen)
            refuse_names(folder, {**known.names, "the folder of the export": folder_names(out, folder)})
            if out.exists():
                out.rmdir()
            folder.rename(out)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    return [out / name for name in files_in(out)]


def _loaded(folder: Path) -> Network:
    if is_segmenter(folder):
        return load_segmenter(folder)
    return load_classifier(folder) if is_classifier(folder) else load_encoder(folder)


def _chosen(names: Sequence[str], subject: Subject, warn: Warn) -> dict[str, Format]:
    unknown = [name for name in names if name not in {*FORMATS, ALL}]
    if unknown:
        raise SettingsError(f"unknown format {unknown[0]!r}; the formats are {', '.join(FORMATS)}, and {ALL}")
    chosen = {name: FORMATS[name] for name in (FORMATS if ALL in names else names)}
    refusals = {name: reason for name, format_ in chosen.items() if (reason := format_.refusal(subject))}
    lines = [f"{name}: {reason}" for name, reason in refusals.items()]
    if lines and ALL not in names:
        raise SettingsError("\n".join(["a format cannot hold this network; nothing was exported", *lines[:4]]))
    for line in lines:
        warn(f"skipped {line}")
    return {name: format_ for name, format_ in chosen.items() if name not in refusals}


def _fill(folder: Path, subject: Subject, known: Surroundings, chosen: dict[str, Format]) -> None:
    """Write all files of an export."""
    described = {name: _write(format_, subject, folder) for name, format_ in chosen.items()}
    prepare = standalone_source(subject.preprocessing.dimensions, masks=subject.segmenter is not None)
    (folder / "prepare.py").write_text(prepare, encoding="utf-8")
    contract = preprocessing(subject, described, folder)
    write_json(folder / "preprocessing.json", contract)
    parity = _compare_formats(subject, known.views, folder, list(chosen))
    write_json(folder / "parity.json", parity)
    (folder / "MODEL_CARD.md").write_text(known.write_card(contract, parity), encoding="utf-8")
    sums = [f"{sha256_of(folder / name)}  {name}\n" for name in files_in(folder)]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def _write(format_: Format, subject: Subject, folder: Path) -> dict[str, Any]:
    """Write one format; return its entry in preprocessing.json."""
    files = format_.write(subject, folder)
    return {"path": files[0].relative_to(folder).parts[0], **format_.describe(subject)}


def _compare_formats(subject: Subject, real: list[NDArray[Any]], folder: Path, formats: list[str]) -> dict[str, Any]:
    """Compare each format with the network on the same images; return the content of parity.json.

    The synthetic images and their outputs stay in the export for `medmoco verify`; real images do not.
    """
    prepared = subject.preprocessing
    count = SYNTHETIC_VOLUMES if prepared.dimensions == 3 else SYNTHETIC_IMAGES
    synthetic = synthetic_views(
        prepared.size, prepared.bit_depth, count, channels=subject.backbone.channels, dimensions=prepared.dimensions
    )
    views = torch.from_numpy(np.concatenate([synthetic, *real]))
    images: Floats = to_float(views, prepared, torch.device("cpu"), channels_last=False).numpy()
    expected = _outputs(subject, images)
    if not all(np.isfinite(values).all() for values in expected.values()):
        raise CheckpointError("the network's outputs are not finite: its training diverged; nothing was exported")
    try:
        records = [compare(name, folder, images, expected) for name in formats]
    except NotInstalledError as library:
        raise CheckpointError(
            f"{library} is not installed, and without it the files cannot be checked; nothing was exported"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nNothing was exported; please report this with the backbone.") from None
    save_cases(folder / CASES, images[: len(synthetic)], _outputs(subject, images[: len(synthetic)]))
    return {
        "images": {"synthetic": len(synthetic), "training": len(images) - len(synthetic)},
        "measure": "difference of outputs as a share of the largest; float32, CPU, loaded in a new process",
        "formats": records,
    }


def _outputs(subject: Subject, images: Floats) -> dict[str, Floats]:
    """Return the network's outputs by name; of a classifier also the features, without mirroring."""
    batch = torch.from_numpy(images)
    with torch.inference_mode():
        outputs = subject.graph(batch)
        features = {} if subject.head is None else {"features": subject.backbone(batch).numpy()}
    named = zip(subject.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    return features | {name: values.numpy() for name, values in named}
