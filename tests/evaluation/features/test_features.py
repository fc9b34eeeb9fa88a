"""Features are those of the frozen encoder, in row order, and the proof that it is frozen can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medmoco.config import RunSettings, load
from medmoco.data.loading.loading import Batch
from medmoco.errors import CheckpointError
from medmoco.evaluation.features import features
from medmoco.evaluation.features.features import Mirrored, extract, fingerprint, thumbnails

CPU = torch.device("cpu")
ROWS, SIZE = 11, 64


class Split(SimpleNamespace):
    """As much of a split as features need."""

    def __len__(self) -> int:
        return ROWS


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    keys = ["evaluate.batch_size=4", "views.mean=0.25", "views.std=0.5", f"views.size={SIZE}", "data.canvas_size=64"]
    return load(None, [f"out={tmp_path}", f"data.manifest={tmp_path}", f"data.root={tmp_path}", *keys])


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (ROWS, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def split(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    def batches(split: Any, settings: RunSettings, size: int, make: Any) -> Iterator[Batch]:
        assert size == SIZE
        for samples in torch.arange(len(split)).split(settings.evaluate.batch_size):
            notices = ("train.csv row 2: colour",) if samples[0] == 0 else ()
            digests = tuple(str(int(sample)).encode() for sample in samples)
            yield Batch([pixels[samples]], samples, notices=notices, digests=digests)

    monkeypatch.setattr(features, "evaluation_batches", batches)
    return Split(csv=Path("train.csv"), rows=np.arange(2, 2 + ROWS))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    assert isinstance(net[1].running_mean, Tensor)
    net[1].running_mean += 0.3
    return net


class RoundsByPlace(nn.Module):
    """An encoder whose last bits depend on where in its batch an image is, as those of libraries may."""

    def forward(self, views: Tensor) -> Tensor:
        return views.flatten(1)[:, :5] + 1e-6 * torch.arange(1, len(views) + 1)[:, None]


def test_extract__copies_of_an_image_get_the_same_features(
    split: Any, settings: RunSettings, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for constant ones, which have no digest and may be of different greys."""
    pixels[5], pixels[10] = pixels[2], pixels[2]
    contents = [0, 1, 2, 3, 4, 2, None, None, 8, 9, 2]

    def batches(*_: Any) -> Iterator[Batch]:
        for samples in torch.arange(ROWS).split(4):
            digests = tuple(b"" if (own := contents[sample]) is None else str(own).encode() for sample in samples)
            yield Batch([pixels[samples]], samples, digests=digests)

    monkeypatch.setattr(features, "evaluation_batches", batches)
    found = extract({"run": RoundsByPlace()}, split, settings, CPU).features["run"]
    assert (found[[5, 10]] == found[2]).all()
    assert len(np.unique(found, axis=0)) == ROWS - 2
    # What is made of an image may depend on its row, as twins do.
    made = extract({"run": RoundsByPlace()}, split, settings, CPU, make=lambda *_: None).features["run"]
    assert (made[5] != made[2]).any()


def test_extract__gives_eval_mode_features_in_row_order(split: Any, settings: RunSettings, pixels: Tensor) -> None:
    net = encoder().train()
    found, notices, digests = extract({"run": net}, split, settings, CPU)
    with torch.no_grad():
        plain = torch.cat([encoder().eval()((image / 255 - 0.25)[None] / 0.5) for image in pixels])
    assert found["run"].dtype == np.float32
    assert np.allclose(found["run"], plain.numpy(), atol=1e-5)
    assert notices == ("train.csv row 2: colour",)
    assert digests == tuple(str(row).encode() for row in range(ROWS))


def test_extract__leaves_weights_statistics_and_modes_as_they_were(split: Any, settings: RunSettings) -> None:
    net = encoder().train()
    net[1].eval()
    before = fingerprint(net)
    extract({"run": net}, split, settings, CPU)
    assert fingerprint(net) == before
    assert net.training
    assert net[3].training
    assert not net[1].training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_extract__an_encoder_that_changes_is_caught(split: Any, settings: RunSettings) -> None:
    class Drifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, views: Tensor) -> Tensor:
            self.seen += 1
            return views.mean((2, 3))

    with pytest.raises(RuntimeError, match="changed while its features were computed: run"):
        extract({"untrained": encoder(), "run": Drifts()}, split, settings, CPU)


def test_extract__features_that_are_not_finite_name_the_row(split: Any, settings: RunSettings) -> None:
    class Breaks(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            values = views.mean((2, 3))
            values[2:] = torch.inf
            return values

    with pytest.raises(CheckpointError, match=r"(?s)'run'.*5 of 11 rows of train\.csv, first row 4"):
        extract({"run": Breaks()}, split, settings, CPU)


def test_extract__a_lost_row_is_caught(split: Any, settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = features.evaluation_batches
    monkeypatch.setattr(features, "evaluation_batches", lambda *given: list(whole(*given))[:-1])
    with pytest.raises(RuntimeError, match="rows in order"):
        extract({"run": encoder()}, split, settings, CPU)


def test_extract__bf16_is_close_and_still_float32(split: Any, settings: RunSettings) -> None:
    exact, *_ = extract({"run": encoder()}, split, settings, CPU)
    rough, *_ = extract({"run": encoder()}, split, settings, CPU, precision="bf16")
    assert rough["run"].dtype == np.float32
    assert not np.array_equal(rough["run"], exact["run"])
    assert np.allclose(rough["run"], exact["run"], atol=0.02)


def test_thumbnails__are_block_means_of_the_encoders_view(split: Any, settings: RunSettings, pixels: Tensor) -> None:
    found, *_ = extract({"pixels": thumbnails(32)}, split, settings, CPU)
    blocks = pixels.double().reshape(ROWS, 32, SIZE // 32, 32, SIZE // 32).mean((2, 4)).reshape(ROWS, -1)
    assert np.allclose(found["pixels"], (blocks / 255 - 0.25) / 0.5, atol=1e-5)


def test_fingerprint__sees_every_parameter_and_buffer() -> None:
    seen = {fingerprint(encoder())}
    names = list(encoder().state_dict())
    for name in names:
        net = encoder()
        value = net.state_dict()[name].reshape(-1)
        value[-1:] += 1  # state dicts share memory with their module
        seen.add(fingerprint(net))
    assert {"1.running_var", "1.num_batches_tracked", "0.bias"} <= set(names)
    assert len(seen) == len(names) + 1
    assert fingerprint(encoder().to(memory_format=torch.channels_last)) in seen  # type: ignore[call-overload]


def test_mirrored__is_the_mean_over_an_image_and_its_mirror_image() -> None:
    encoder, views = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 1, 3, 4)
    found = Mirrored(encoder)(views)
    torch.testing.assert_close(found, (encoder(views) + encoder(views.flip(-1))) / 2)
    torch.testing.assert_close(Mirrored(encoder)(views.flip(-1)), found)
    assert not torch.allclose(found, encoder(views))


def test_mirrored__exchanges_left_and_right_of_volumes() -> None:
    views = torch.randn(2, 1, 3, 4, 5)
    seen: list[Tensor] = []

    class Recording(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(given)
            return given.flatten(1)[:, :2]

    found = Mirrored(Recording())(views)
    right_to_left = torch.stack([views[:, :, 2], views[:, :, 1], views[:, :, 0]], 2)
    assert torch.equal(seen[0], views)
    assert torch.equal(seen[1], right_to_left)
    assert torch.equal(found, (views.flatten(1)[:, :2] + right_to_left.flatten(1)[:, :2]) / 2)


def test_thumbnails__of_volumes_are_block_means() -> None:
    views = torch.randn(2, 1, 32, 32, 32)
    found = thumbnails(dimensions=3)(views)
    assert found.shape == (2, 16**3)
    assert float(found[1, 16 * 16 * 3 + 16 * 5 + 7]) == pytest.approx(float(views[1, 0, 6:8, 10:12, 14:16].mean()))
    assert thumbnails(4, dimensions=3)(views).shape == (2, 64)
    assert thumbnails()(views[:, :, 0]).shape == (2, 32 * 32)
