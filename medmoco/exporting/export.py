"""A trained network -> files that others load: weights, how to feed them, proof that they are right, a card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.loading import check_images, read_canvases, trained_rows
from medmoco.data.manifest import Split, load_manifest
from medmoco.data.views import whole
from medmoco.errors import CheckpointError, DataError, SettingsError
from medmoco.exporting import prepare
from medmoco.exporting.card import gather, write_card
from medmoco.exporting.contract import preprocessing
from medmoco.exporting.formats import (
    Format,
    detectron2_file,
    huggingface,
    monai_bundle,
    onnx_file,
    program_file,
    safetensors_file,
    timm_file,
    torchvision_file,
)
from medmoco.exporting.parity import compare, synthetic_views
from medmoco.exporting.subject import GraphNetwork, Preparation, Subject, from_encoder
from medmoco.training.checkpoint import load_run
from medmoco.training.runlog import print_warning, write_json

FORMATS: dict[str, Format] = {
    "safetensors": safetensors_file,
    "timm": timm_file,
    "torchvision": torchvision_file,
    "detectron2": detectron2_file,
    "huggingface": huggingface,
    "monai-bundle": monai_bundle,
    "onnx": onnx_file,
    "program": program_file,
}
DEFAULT = ("safetensors", "onnx")
NOT_STATED = "not stated"
_REAL_IMAGES = 4


def export(
    run: Path,
    out: Path,
    warn: Callable[[str], None] = print_warning,
    *,
    formats: Sequence[str] = DEFAULT,
    licence: str = NOT_STATED,
) -> list[Path]:
    """Write a run's encoder with all that a stranger needs to use it.

    The files appear together, once each has been loaded back in a new process and has given the run's features.

    Args:
        run: Run folder.
        out: New or empty folder.
        warn: Told of damaged checkpoints that are passed over.
        formats: Names of FORMATS.
        licence: Of the weights.

    Returns:
        The files.

    Raises:
        SettingsError: `out` is not empty or cannot be written, or a format cannot hold the network.
        CheckpointError: the run cannot be read, or an exported file does not give its features.
    """
    settings = load_run(run)
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; choose another for the export")
    subject = from_encoder(str(run), settings, warn)
    chosen = _chosen(formats, subject)
    train = _training_split(settings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".medmoco-export-") as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            described = {name: _write(format_, subject, folder) for name, format_ in chosen.items()}
            shutil.copyfile(prepare.__file__, folder / "prepare.py")
            contract = preprocessing(subject, described, folder, licence)
            write_json(folder / "preprocessing.json", contract)
            parity = _prove(subject, _real_views(settings, subject.preparation.size, train), folder, list(chosen))
            write_json(folder / "parity.json", parity)
            facts = gather(run, settings, subject.source["step"], train)
            (folder / "MODEL_CARD.md").write_text(write_card(facts, contract, parity), encoding="utf-8")
            if out.exists():
                out.rmdir()
            folder.rename(out)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    return sorted(path for path in out.rglob("*") if path.is_file())


def _chosen(names: Sequence[str], subject: Subject) -> dict[str, Format]:
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise SettingsError(f"no format is called {unknown[0]!r}; there are {', '.join(FORMATS)}, and all")
    chosen = {name: FORMATS[name] for name in names}
    refusals = [f"{name}: {reason}" for name, format_ in chosen.items() if (reason := format_.refusal(subject))]
    if refusals:
        raise SettingsError("\n".join(["nothing was exported, as a format cannot hold this network:", *refusals[:3]]))
    return chosen


def _write(format_: Format, subject: Subject, folder: Path) -> dict[str, Any]:
    """Write one format; return what preprocessing.json says of it."""
    files = format_.write(subject, folder)
    return {"path": files[0].relative_to(folder).parts[0], **format_.describe(subject)}


def _training_split(settings: RunSettings) -> Split | None:
    """Return the training split; the data need not be where the export is made."""
    try:
        return trained_rows(load_manifest(settings.data, ("train",))["train"], settings.data)
    except DataError:
        return None


def _prove(subject: Subject, real: list[NDArray[Any]], folder: Path, formats: list[str]) -> dict[str, Any]:
    """Compare each format with the network on the same images; return the content of parity.json."""
    prepared = subject.preparation
    synthetic = synthetic_views(prepared.size, prepared.bit_depth)
    images = _normalised(np.concatenate([synthetic, *real]), prepared)
    with torch.inference_mode():
        outputs = GraphNetwork(subject)(torch.from_numpy(images))
    named = zip(subject.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    expected = {name: values.numpy() for name, values in named}
    if not all(np.isfinite(values).all() for values in expected.values()):
        raise CheckpointError("the network's outputs are not finite: its training diverged; nothing was exported")
    return {
        "images": {"synthetic": len(synthetic), "training": len(images) - len(synthetic)},
        "measure": "difference of outputs as a share of the largest; float32, CPU, loaded in a new process",
        "formats": [compare(name, folder, images, expected) for name in formats],
    }


def _normalised(views: NDArray[Any], prepared: Preparation) -> NDArray[np.float32]:
    """Return (N, 1, S, S) float32; the arithmetic is that of data.loading.to_float."""
    white = 2**prepared.bit_depth - 1
    floats: NDArray[np.float32] = views.astype(np.float32) * (1 / (white * prepared.std)) - prepared.mean / prepared.std
    return floats


def _real_views(settings: RunSettings, size: int, train: Split | None) -> list[NDArray[Any]]:
    """Return a few training images as (N, 1, S, S), or nothing where they cannot be read."""
    if train is None:
        return []
    few = train.select(np.unique(np.linspace(0, len(train) - 1, _REAL_IMAGES).astype(np.int64)))
    try:
        check_images(few, settings.data)
        canvases, _ = read_canvases(few, np.arange(len(few)), settings)
    except (DataError, SettingsError):  # the latter of a pack that is gone
        return []
    return [np.stack([whole(canvas, size) for canvas in canvases])[:, None]]
