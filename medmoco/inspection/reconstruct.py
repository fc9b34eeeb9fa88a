"""`medmoco reconstruct`: draw images and their reconstructions by a run's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.config import ConfigSource, RunSettings, load, load_run, run_of
from medmoco.data.augment.normalisation import to_float
from medmoco.data.augment.views import unchanged
from medmoco.data.loading.emptiness import Emptiness, check_masks
from medmoco.data.loading.loading import read_canvases, whole_views
from medmoco.data.manifest.manifest import Split
from medmoco.data.pack.pack import RECIPE, RECIPE_OF_CHANNELS
from medmoco.errors import CheckpointError
from medmoco.evaluation.features.inputs import find_rows, load_splits, on_device
from medmoco.models.moco import MoCo
from medmoco.plotting.pictures import Tile, shown, write_picture
from medmoco.training.context import RunContext
from medmoco.training.moco_task import create_state
from medmoco.training.run_folder import load_source
from medmoco.utils.files import PathLike

Shares = NDArray[np.float32]

_FULL = 0.25  # error, as a fraction of white, drawn in the strongest colour


def reconstruct(
    config: ConfigSource,
    run: PathLike,
    out: PathLike,
    rows: Sequence[int],
    *,
    split: str = "val",
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Draw images, their reconstructions from the embeddings, and the error; the picture shows patients.

    Args:
        config: Settings of the data, see `load_config`. Preprocessing is that of the run, whatever the settings are.
        run: Run folder of a run with a decoder, or RUN/best for its best checkpoint.
        out: PNG file.
        rows: Row numbers in the split, counted as in a spreadsheet.
        split: Split of the rows.
        log: Receives warnings about damaged checkpoints.

    Returns:
        One line per image: its error, and that of a uniform image with the same mean.

    Raises:
        CheckpointError: the folder is not a run with a decoder.
        ManifestError: the manifest or a row cannot be used.
        SettingsError: `out` cannot be written.
        DataError: an image cannot be used.

    Examples:
        >>> import medmoco
        >>> print(medmoco.reconstruct("decoder.yaml", "runs/decoder", "decoder.png", [2, 3]))  # doctest: +SKIP
    """
    settings, run, out = load(config), Path(run), Path(out)
    settings.data.require_images("reconstruct")
    trained = load_run(run_of(run) or run)
    model = load_with_decoder(run, trained, log)
    prepared = {key: getattr(trained.data, key) for key in (*RECIPE, *RECIPE_OF_CHANNELS)}
    data = settings.data.model_copy(update=prepared)
    settings = settings.model_copy(update={"views": trained.views, "data": data})
    loaded = load_splits(settings, (split,))[split]
    chosen = loaded.select(find_rows(loaded, rows))
    images, weights = _images_and_weights(chosen, settings, trained)
    device = on_device(model, settings)
    views = to_float(torch.from_numpy(images), trained.views, device, channels_last=False)
    with torch.inference_mode():
        _, (output,) = model.branches()([views])
    reconstructed = _denormalised(output, trained)
    truth = images.astype(np.float32) / np.iinfo(images.dtype).max
    tiles, text = [], []
    for row, own, found, weight in zip(chosen.rows.tolist(), truth, reconstructed, weights, strict=True):
        error, uniform = _errors(found, own, weight), _errors(own.mean((1, 2), keepdims=True), own, weight)
        caption = f"error {_root_mean_square(error):.3f} of white"
        text.append(f"{split} row {row}: {caption}; of a uniform image {_root_mean_square(uniform):.3f}")
        tiles.append([
            Tile(_pixels(own, settings), f"{split} row {row}"),
            Tile(_pixels(found, settings), "reconstruction"),
            Tile(_pixels(own, settings), caption, np.minimum(error / _FULL, 1)),
        ])  # fmt: skip
    write_picture(tiles, out)
    scale = f"the strongest colour is an error of {_FULL:g} of white or more, weighted as in training"
    return "\n".join([*text, scale, f"{out} shows images of patients: keep it where such images may be stored"])


def load_with_decoder(run: Path, trained: RunSettings, log: Callable[[str], None]) -> MoCo:
    """Return all networks of a run, in eval mode.

    Raises:
        CheckpointError: the run has no decoder, or its checkpoint does not match its settings.
    """
    if not trained.decoder.weight:
        raise CheckpointError(f"{run} was trained without a decoder; set decoder.weight above 0 and pretrain again")
    content = load_source(run, log)
    model = create_state(RunContext(trained.model_copy(update={"out": run}))).model
    assert isinstance(model, MoCo)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError:
        raise CheckpointError(f"the checkpoint of step {content['step']} does not match the run's settings") from None
    return model.eval()


def _images_and_weights(chosen: Split, settings: RunSettings, trained: RunSettings) -> tuple[NDArray[Any], Shares]:
    """Return whole images (B, C, S, S), and the weights of their pixels, (B, S, S) from 0 to 1."""
    positions = np.arange(len(chosen))
    canvases, _ = read_canvases(chosen, positions, settings)
    size = trained.views.size
    images = whole_views(canvases, positions, size=size)
    if trained.decoder.empty == "none":
        return images, np.ones((len(chosen), size, size), np.float32)
    check_masks(chosen, settings.data, trained.decoder)
    emptiness = Emptiness(chosen, settings.data, trained.decoder)
    content = emptiness.weights(canvases, positions, unchanged(canvases), size)[:, 0].astype(np.float32) / 255
    empty = trained.decoder.empty_weight
    return images, (empty + (1 - empty) * content).astype(np.float32)


def _denormalised(output: torch.Tensor, trained: RunSettings) -> Shares:
    """Return reconstructions (B, C, S, S) as fractions of white."""
    mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (trained.views.mean, trained.views.std))
    shares: Shares = (output.float().cpu() * std + mean).clamp(0, 1).numpy()
    return shares


def _errors(output: Shares, truth: Shares, weights: Shares) -> Shares:
    """Return the error of each pixel, (C, S, S) -> (S, S), as root mean square over the channels."""
    errors: Shares = np.sqrt(weights * np.square(output - truth).mean(0))
    return errors


def _pixels(shares: Shares, settings: RunSettings) -> NDArray[Any]:
    return shown(np.rint(255 * shares).astype(np.uint8), settings.data)


def _root_mean_square(values: Shares) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
