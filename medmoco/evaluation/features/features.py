"""Extract the features of a split with frozen encoders, and verify that the encoders did not change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medmoco.config import RunSettings
from medmoco.data.augment.normalisation import to_float
from medmoco.data.loading.loading import Batch, ViewMaker, evaluation_batches
from medmoco.data.manifest.manifest import Split
from medmoco.errors import CheckpointError, Stopped
from medmoco.training.device import autocast
from medmoco.utils.progress import track

Features = NDArray[np.float32]
Digests = tuple[bytes, ...]


class Extracted(NamedTuple):
    """The features of N images.

    Attributes:
        features: (N, F) float32 by encoder, in row order.
        notices: Remarks of the image reader.
        digests: N digests of canvases, in row order; see `fingerprints.canvas_digest`.
    """

    features: dict[str, Features]
    notices: tuple[str, ...]
    digests: Digests


def thumbnails(size: int | None = None, dimensions: int = 2) -> nn.Module:
    """Return the raw-pixel control: its features are the view averaged to `size` pixels or voxels a side.

    (B, C, S, S) -> (B, C * size * size), with 32 by default; for volumes, (B, C, S, S, S) -> (B, C * size**3), with 16.
    Its views are those of the encoders.
    """
    pool = nn.AdaptiveAvgPool3d(size or 16) if dimensions == 3 else nn.AdaptiveAvgPool2d(size or 32)
    return RawPixels(pool, nn.Flatten())


class RawPixels(nn.Sequential):
    """Raw pixels or voxels as features; they are of the whole volume even where encoders see windows of it."""


class Mirrored(nn.Module):
    """The mean of an encoder's features of a view and of its mirror image, (B, C, ...) -> (B, F).

    Left and right are exchanged: the last axis of images (B, C, H, W), the first of volumes (B, C, X, Y, Z).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Tensor) -> Tensor:
        """Return the mean features."""
        left_right = 2 if views.ndim == 5 else -1
        both: Tensor = self.encoder(views) + self.encoder(views.flip(left_right))
        return both / 2


def extract(
    encoders: Mapping[str, nn.Module],
    split: Split,
    settings: RunSettings,
    device: torch.device,
    precision: str = "fp32",
    stop_asked: Callable[[], bool] | None = None,
    make: ViewMaker | None = None,
) -> Extracted:
    """Compute the features of every row; each image is decoded once for all encoders.

    Progress is shown unless `stop_asked` is given, as in training, which shows its own.

    Copies of an image get the features of the first of them: in batches of another size, their own would differ in the
    last bits, and copies would seem to have an order.

    Args:
        encoders: Modules (B, C, S, S) -> (B, F) on the device; their train or eval modes are restored.
        split: N rows.
        settings: `evaluate.size` (or `views.size`), `evaluate.batch_size` and the normalisation are used.
        device: Device of the encoders.
        precision: fp32, bf16 or fp16; below fp32 only if speed matters more, as for a monitor.
        stop_asked: Checked before every batch.
        make: Makes the encoders' input, (B, V * C, S, S) for V views, in place of the whole view.

    Raises:
        CheckpointError: an encoder's features are not finite.
        DataError: an image cannot be used.
        Stopped: `stop_asked` returned true.
        RuntimeError: an encoder changed while it was used; a bug.
    """
    size = settings.evaluate.size or settings.views.size
    batches: Iterable[Batch] = evaluation_batches(split, settings, size, make)
    if stop_asked is None:
        batches = track(batches, len(split), "images", size=len)
    parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
    notices: list[str] = []
    digests: list[bytes] = []
    with closing(outputs_of(encoders, batches, settings, device, precision, stop_asked)) as outputs:
        for batch, found in outputs:
            for name, part in parts.items():
                part.append(found[name])
            notices += batch.notices
            digests += batch.digests
    if len(digests) != len(split):
        raise RuntimeError("evaluation batches are not the split's rows in order")
    features = {name: torch.cat(part).numpy() for name, part in parts.items()}
    first = first_copies(digests) if make is None else None
    if first is not None:
        features = {name: values[first] for name, values in features.items()}
    for name, values in features.items():
        refuse_not_finite(name, values, split.rows, split.csv.name)
    return Extracted(features, tuple(notices), tuple(digests))


def outputs_of(
    encoders: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    settings: RunSettings,
    device: torch.device,
    precision: str = "fp32",
    stop_asked: Callable[[], bool] | None = None,
) -> Generator[tuple[Batch, dict[str, Tensor]], None, None]:
    """Yield each batch with its features by encoder, (B, F) on the CPU; arguments and errors are those of `extract`."""
    done = 0
    with _frozen(encoders):
        for batch in batches:
            if stop_asked and stop_asked():
                raise Stopped("stopped while features were computed")
            if not torch.equal(batch.samples, torch.arange(done, done + len(batch))):
                raise RuntimeError("evaluation batches are not the samples in order")
            done += len(batch)
            with torch.inference_mode(), autocast(device, precision):  # not around the yield: they concern the caller
                features = _features_of_batch(encoders, batch, settings, device)
            yield batch, features


def _features_of_batch(
    encoders: Mapping[str, nn.Module], batch: Batch, settings: RunSettings, device: torch.device
) -> dict[str, Tensor]:
    """Return the features of a batch by encoder, (B, F) on the CPU."""
    whole = to_float(batch.views[-1], settings.views, device, channels_last=settings.train.channels_last)
    found = {}
    for name, encoder in encoders.items():
        in_windows = len(batch.views) > 1 and not isinstance(encoder, RawPixels)
        values = _mean_of_windows(encoder, batch, settings, device) if in_windows else encoder(whole)
        found[name] = values.float().cpu()
    return found


def _mean_of_windows(encoder: nn.Module, batch: Batch, settings: RunSettings, device: torch.device) -> Tensor:
    """Return the mean features (1, F) of the windows that show a volume."""
    parts = []
    for windows in batch.views[0].split(settings.evaluate.batch_size):
        views = to_float(windows, settings.views, device, channels_last=settings.train.channels_last)
        parts.append(encoder(views).float())
    return torch.cat(parts).mean(0, keepdim=True)


def first_copies(digests: Sequence[bytes]) -> NDArray[np.int64] | None:
    """Return the position of each image's first copy; None if there are no copies.

    Constant images have no digest and do not count as copies, since their gray levels may differ.
    """
    first: dict[bytes, int] = {}
    positions = [first.setdefault(digest, i) if digest else i for i, digest in enumerate(digests)]
    return None if positions == list(range(len(digests))) else np.array(positions)


def digests_to_array(digests: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return N digests as an array (N, 32); a constant image has no digest, here zeros."""
    return np.frombuffer(b"".join(digest or bytes(32) for digest in digests), np.uint8).reshape(-1, 32)


def digests_from_array(array: NDArray[np.uint8]) -> Digests:
    """Return the digests in an array (N, 32)."""
    return tuple(digest.tobytes() if digest.any() else b"" for digest in array)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, such as batch-norm statistics, with their names."""
    digest = hashlib.sha256()
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _frozen(encoders: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put encoders in eval mode, and verify afterwards that none of their weights changed."""
    modes = [(module, module.training) for encoder in encoders.values() for module in encoder.modules()]
    before = {name: fingerprint(encoder) for name, encoder in encoders.items()}
    for encoder in encoders.values():
        encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
    changed = [name for name, encoder in encoders.items() if fingerprint(encoder) != before[name]]
    if changed:
        raise RuntimeError(f"frozen encoder changed while its features were computed: {', '.join(changed)}")


def refuse_not_finite(name: str, features: Features, rows: NDArray[np.int64], of: str) -> None:
    """Refuse features (N, F), or maps of them, of an encoder that are not finite.

    Args:
        name: Name of the encoder.
        features: (N, F) or (N, F, ...).
        rows: (N,) row numbers or positions for the message.
        of: What the rows refer to.

    Raises:
        CheckpointError: some features are not finite.
    """
    bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(axis=1))
    if bad.size:
        raise CheckpointError(
            f"encoder '{name}' gives features that are not finite for {bad.size} of {len(rows)} rows of "
            f"{of}, first row {rows[bad[0]]}\n"
            "its weights are damaged or its training diverged; take an earlier checkpoint"
        )
