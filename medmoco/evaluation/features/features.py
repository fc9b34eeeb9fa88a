"""Frozen encoders -> features of a split, computed once, with the proof that nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

Features = NDArray[np.float32]
Digests = tuple[bytes, ...]


class Extracted(NamedTuple):
    """What became of N images.

    Attributes:
        features: (N, F) float32 by encoder, in row order.
        notices: What the image reader remarked on.
        digests: N, in row order; see `fingerprints.canvas_digest`.
    """

    features: dict[str, Features]
    notices: tuple[str, ...]
    digests: Digests


def thumbnails(size: int = 32) -> nn.Module:
    """Return the raw-pixel control: an "encoder" whose features are the view averaged down to size x size pixels.

    (B, C, S, S) -> (B, C * size * size). It sees the very view that the encoders see.
    """
    return nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten())


class Mirrored(nn.Module):
    """The mean of an encoder's features of an image and of its mirror image, (B, C, S, S) -> (B, F)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Tensor) -> Tensor:
        """Encode both."""
        both: Tensor = self.encoder(views) + self.encoder(views.flip(-1))
        return both / 2


def extract(
    encoders: Mapping[str, nn.Module],
    split: Split,
    settings: RunSettings,
    device: torch.device,
    precision: str = "fp32",
    stop_asked: Callable[[], bool] = lambda: False,
    make: ViewMaker | None = None,
) -> Extracted:
    """Compute the features of every row; each image is decoded once for all encoders.

    Copies of an image get the features of the first of them: in batches of another size, its own would differ in the
    last bits, and copies would seem to have an order.

    Args:
        encoders: Modules (B, C, S, S) -> (B, F), already on the device. Their train or eval modes are restored.
        split: Rows to encode, N of them.
        settings: `evaluate.size` (or `views.size`), `evaluate.batch_size` and the normalisation are used.
        device: Of the encoders.
        precision: fp32, bf16 or fp16; less than fp32 only where speed matters more, as for a monitor.
        stop_asked: Asked before every batch.
        make: What the encoders get of an image instead of its whole view: (B, V * C, S, S) for V views.

    Returns:
        The features, and what came along.

    Raises:
        CheckpointError: an encoder's features are not finite.
        DataError: an image cannot be used.
        Stopped: `stop_asked` said so.
        RuntimeError: an encoder changed while it was used; a bug.
    """
    size = settings.evaluate.size or settings.views.size
    batches = evaluation_batches(split, settings, size, make)
    found = encode(encoders, batches, settings, device, precision, stop_asked, copies=make is None)
    if len(found.digests) != len(split):
        raise RuntimeError("evaluation batches are not the split's rows in order")
    for name, values in found.features.items():
        refuse_not_finite(name, values, split.rows, split.csv.name)
    return found


def encode(
    encoders: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    settings: RunSettings,
    device: torch.device,
    precision: str = "fp32",
    stop_asked: Callable[[], bool] = lambda: False,
    *,
    copies: bool = True,
) -> Extracted:
    """Compute the features of batches of whole images; see `extract`.

    Args:
        encoders: As of `extract`.
        batches: Of samples 0, 1, 2, and so on.
        settings: The normalisation is used.
        device: Of the encoders.
        precision: As of `extract`.
        stop_asked: As of `extract`.
        copies: Give the copies of an image the features of the first.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
    samples: list[Tensor] = []
    notices: list[str] = []
    digests: list[bytes] = []
    with _frozen(encoders), torch.inference_mode(), autocast(device, precision):
        for batch in batches:
            if stop_asked():
                raise Stopped("stopped while features were computed")
            views = to_float(batch.views[0], settings.views, device, channels_last=settings.train.channels_last)
            for name, encoder in encoders.items():
                parts[name].append(encoder(views).float().cpu())
            samples.append(batch.samples)
            notices += batch.notices
            digests += batch.digests
    if not torch.equal(torch.cat(samples), torch.arange(len(digests))):
        raise RuntimeError("evaluation batches are not the samples in order")
    features = {name: torch.cat(part).numpy() for name, part in parts.items()}
    equal = _first_of_equal(digests) if copies else None
    if equal is not None:
        features = {name: values[equal] for name, values in features.items()}
    return Extracted(features, tuple(notices), tuple(digests))


def _first_of_equal(digests: Sequence[bytes]) -> NDArray[np.int64] | None:
    """Return for each image the position of its first copy; None where there are no copies.

    Constant images have no digest, and are not taken for copies: they may be of different greys.
    """
    first: dict[bytes, int] = {}
    positions = [first.setdefault(digest, i) if digest else i for i, digest in enumerate(digests)]
    return None if positions == list(range(len(digests))) else np.array(positions)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of every parameter and buffer, batch-norm statistics included, with their names."""
    digest = hashlib.sha256()
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _frozen(encoders: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put encoders in eval mode, and prove afterwards that not one of their numbers changed."""
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
    """Refuse features that are not finite.

    Args:
        name: Of the encoder.
        features: (N, F).
        rows: (N,), how the user counts the images.
        of: Where the rows are.

    Raises:
        CheckpointError: some are.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise CheckpointError(
            f"encoder '{name}' gives features that are not finite for {bad.size} of {len(rows)} rows of "
            f"{of}, first row {rows[bad[0]]}\n"
            "its weights are damaged or its training diverged; take an earlier checkpoint"
        )
