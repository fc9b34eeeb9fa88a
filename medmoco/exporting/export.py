"""Run folder -> files that others load: weights, the contract to feed them, proof that they are right, a card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from medmoco import __version__
from medmoco.config import RunSettings
from medmoco.data.loading import check_images, read_canvases, to_float, trained_rows
from medmoco.data.manifest import Split, load_manifest
from medmoco.data.views import whole
from medmoco.errors import CheckpointError, DataError, SettingsError
from medmoco.exporting.card import gather, write_card
from medmoco.exporting.contract import INPUT, OUTPUT, preprocessing
from medmoco.exporting.parity import TOLERANCE, compare, synthetic_views
from medmoco.training.checkpoint import load_backbone, load_run
from medmoco.training.runlog import print_warning, write_json

ONNX_OPSET = 20
ONNX_LIMIT = 2**31 - 2**20  # bytes of weights that fit into one protobuf file
_REAL_IMAGES = 4


def export(run: Path, out: Path, warn: Callable[[str], None] = print_warning) -> list[Path]:
    """Write a run's encoder with all that a stranger needs to use it.

    The files appear together, once each has been loaded back in a new process and has given the run's features.

    Args:
        run: Run folder.
        out: New or empty folder.
        warn: Told of damaged checkpoints that are passed over.

    Returns:
        The files.

    Raises:
        SettingsError: `out` is not empty or cannot be written.
        CheckpointError: the run cannot be read, or an exported file does not give its features.
    """
    settings = load_run(run)
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; choose another for the export")
    backbone, source = load_backbone(str(run), settings, warn)
    backbone = backbone.float().eval()
    train = _training_split(settings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".medmoco-export-") as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            weights = [_write_safetensors(backbone.net, folder), _write_onnx(backbone.net, settings.views.size, folder)]
            contract = preprocessing(settings, backbone, weights)
            write_json(folder / "preprocessing.json", contract)
            parity = _prove(backbone, settings, train, weights, folder / "preprocessing.json")
            write_json(folder / "parity.json", parity)
            facts = gather(run, settings, source["step"], train)
            (folder / "MODEL_CARD.md").write_text(write_card(facts, contract, parity), encoding="utf-8")
            if out.exists():
                out.rmdir()
            folder.rename(out)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    return sorted(out.iterdir())


def _training_split(settings: RunSettings) -> Split | None:
    """Return the training split; the data need not be where the export is made."""
    try:
        return trained_rows(load_manifest(settings.data, ("train",))["train"], settings.data)
    except DataError:
        return None


def _write_safetensors(net: nn.Module, folder: Path) -> Path:
    file = folder / "encoder.safetensors"
    layout = torch.contiguous_format
    state = {name: value.detach().clone(memory_format=layout) for name, value in net.state_dict().items()}
    file.write_bytes(save(state, metadata={"format": "pt"}))  # save_file would make it unreadable to others
    return file


def _write_onnx(net: nn.Module, size: int, folder: Path) -> Path:
    """Write encoder.onnx, weights inside, with a free batch dimension.

    Raises:
        CheckpointError: torch cannot express the network, or one file cannot hold it.
    """
    weights = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    if weights > ONNX_LIMIT:
        raise CheckpointError(f"the encoder's {weights / 1e9:.1f} GB exceed the 2 GB that one ONNX file can hold")
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.onnx.export(
            net, (torch.zeros(2, 1, size, size),), input_names=[INPUT], output_names=[OUTPUT], dynamo=True,
            dynamic_shapes=({0: batch},), opset_version=ONNX_OPSET, verbose=False,
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"torch cannot write this encoder as ONNX; nothing was exported\n{reason}") from None
    assert program is not None
    content = program.model_proto
    _strip(content)
    content.producer_name, content.producer_version = "medmoco", __version__
    onnx.checker.check_model(content, full_check=True)
    file = folder / "encoder.onnx"
    file.write_bytes(content.SerializeToString())
    return file


def _strip(message: Any) -> None:
    """Remove a protobuf message's comments at every depth.

    torch writes stack traces, and with them the paths of this machine, into each node.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _prove(
    backbone: Any, settings: RunSettings, train: Split | None, weights: list[Path], contract: Path
) -> dict[str, Any]:
    """Compare each file with the run on the same images; return the content of parity.json."""
    synthetic = synthetic_views(settings.views.size, settings.data.bit_depth)
    real = _real_views(settings, train)
    views = torch.from_numpy(np.concatenate([synthetic, *real]))
    images = to_float(views, settings.views, torch.device("cpu"), channels_last=False)
    with torch.inference_mode():
        expected: Tensor = backbone(images)
    if not torch.isfinite(expected).all():
        raise CheckpointError("the encoder's features are not finite: its training diverged; nothing was exported")
    return {
        "images": {"synthetic": len(synthetic), "training": len(views) - len(synthetic)},
        "tolerance": TOLERANCE,
        "measure": "difference of features as a share of the run's largest; float32, CPU, loaded in a new process",
        "files": [compare(file, contract, images.numpy(), expected.numpy()) for file in weights],
    }


def _real_views(settings: RunSettings, train: Split | None) -> list[NDArray[Any]]:
    """Return a few training images as (N, 1, S, S), or nothing where they cannot be read."""
    if train is None:
        return []
    few = train.select(np.unique(np.linspace(0, len(train) - 1, _REAL_IMAGES).astype(np.int64)))
    try:
        check_images(few, settings.data)
        canvases, _ = read_canvases(few, np.arange(len(few)), settings)
    except (DataError, SettingsError):  # the latter of a pack that is gone
        return []
    return [np.stack([whole(canvas, settings.views.size) for canvas in canvases])[:, None]]
