from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medmoco.config import RunSettings
from medmoco.data.loading.loading import Batch, read_canvases
from medmoco.data.loading.sampler import StepOrder
from medmoco.detection.boxes import Annotated, load_annotations
from medmoco.detection.detectors import create_detector
from medmoco.detection.learning import Detecting, detector_batches, find_boxes, images_in, sizes_in_canvas, targets_of
from medmoco.errors import CheckpointError, Stopped
from medmoco.models.backbones import create_backbone
from medmoco.models.batch_norm import settle_statistics, sync_batch_norm
from medmoco.training.context import RunContext
from medmoco.training.distributed import ALONE, Group
from tests.helpers.dicom_files import save_dicom
from tests.helpers.rectangles import make_settings, write_images
from tests.helpers.together import run_together

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("rectangles") / "data")


def annotated_of(settings: RunSettings, name: str = "train") -> Annotated:
    return load_annotations(settings, ("train", "val")).splits[name]


def settings_of(manifest: Path, *overrides: str) -> RunSettings:
    return make_settings(manifest, "data.canvas_size=32", *overrides)


@pytest.mark.parametrize("aspect", [0.5, 1, 2.3])
def test_targets_of__boxes_follow_pixels_that_are_not_square(tmp_path: Path, aspect: float) -> None:
    pixels = np.zeros((40, 60), np.uint16)
    pixels[10:30, 20:50] = 4095
    folder = tmp_path / "data"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        save_dicom(
            folder / split / "a.dcm", pixels, WindowCenter=2048, WindowWidth=4096, PixelSpacing=[aspect * 0.2, 0.2]
        )  # fmt: skip
        (folder / f"{split}.csv").write_text("Path,PatientID\na.dcm,P1\n")
    (folder / "boxes.csv").write_text(
        "Split,Path,Label,x_min,y_min,x_max,y_max\n"
        + "".join(f"{split},a.dcm,Mass,20,10,50,30\n" for split in ("train", "val"))
    )
    settings = settings_of(folder, "data.canvas_size=64", "views.flip_probability=0")
    train, first = annotated_of(settings), np.array([0])
    (canvas,), _ = read_canvases(train.split, first, settings)
    assert sizes_in_canvas(train, first, settings) == [(canvas.height, canvas.width)]
    (target,) = targets_of(train, first, 0, settings, CPU)
    y, x = np.nonzero(canvas.pixels > 127)
    edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    np.testing.assert_allclose(target["boxes"].numpy()[0], edges, atol=1)


def test_detector_batches__boxes_lie_where_the_views_show_them(manifest: Path) -> None:
    """The rectangles are bright: each box, mirrored or not, is brighter than what surrounds it."""
    settings = settings_of(manifest, "views.flip_probability=0.5", "views.jitter_probability=0")
    train = annotated_of(settings)
    mirrored = 0
    for batch in detector_batches(train, settings, StepOrder(0, 12, 4, 3), 0):
        samples = batch.samples.numpy()
        targets = targets_of(train, samples, batch.epoch, settings, CPU)
        images = images_in(batch.views[0], sizes_in_canvas(train, samples, settings), CPU)
        for sample, image, target in zip(samples, images, targets, strict=True):
            assert image.shape == (1, 24, 32)
            assert len(target["boxes"]) == len(target["labels"]) == np.sum(train.images == sample)
            own = train.corners[train.boxes_of(int(sample))] / 2
            mirrored += len(own) > 0 and not np.allclose(own, target["boxes"].numpy())
            inside = torch.zeros(24, 32, dtype=torch.bool)
            for x_min, y_min, x_max, y_max in target["boxes"].round().int().tolist():
                inside[y_min:y_max, x_min:x_max] = True
            if inside.any():
                assert image[0][inside].mean() - image[0][~inside].mean() > 0.2
    assert 5 < mirrored < 20


def test_targets_of__labels_as_each_detector_counts_them(manifest: Path) -> None:
    counted = {}
    for detector in ("faster_rcnn", "retinanet"):
        settings = settings_of(manifest, f"detection.detector={detector}")
        targets = targets_of(annotated_of(settings), np.arange(12), 0, settings, CPU)
        counted[detector] = torch.cat([target["labels"] for target in targets])
    assert counted["retinanet"].unique().tolist() == [0, 1]
    assert torch.equal(counted["faster_rcnn"], counted["retinanet"] + 1)


def test_detector_batches__resume_and_workers_change_nothing(manifest: Path) -> None:
    settings, order = settings_of(manifest), StepOrder(0, 12, 4, 2)
    train = annotated_of(settings)
    whole = list(detector_batches(train, settings, order, 0))
    rest = list(detector_batches(train, settings_of(manifest, "data.workers=2"), order, 3))
    assert len(whole) == 6
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.views[0], other.views[0])
        assert one.samples.tolist() == other.samples.tolist()
    assert len({batch.views[0].numpy().tobytes() for batch in whole}) == 6


class Finds(nn.Module):
    """A detector that finds the bright pixels' box in each image, as torchvision gives it."""

    def __init__(self, score: float = 0.5) -> None:
        super().__init__()
        self.score = score

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            y, x = torch.nonzero(image[0] > 0.55, as_tuple=True)
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 1, 1]
            found.append({
                "boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([0]),
                "scores": torch.tensor([self.score]),
            })  # fmt: skip
        return found


@pytest.mark.parametrize("canvas", [32, 64, 96])
def test_find_boxes__in_pixels_of_the_image(manifest: Path, canvas: int) -> None:
    settings = make_settings(manifest, f"data.canvas_size={canvas}")
    train = annotated_of(settings)
    found = find_boxes(Finds(), train, settings, CPU)
    assert found.images.tolist() == list(range(12))
    single = [n for n in range(12) if np.sum(train.images == n) == 1]
    assert len(single) > 4
    for image in single:
        truth = train.corners[train.boxes_of(image)][0]
        assert np.abs(found.corners[image] - truth).max() <= 64 / canvas + 1e-6


def test_find_boxes__refuses_what_is_not_finite_and_stops_when_asked(manifest: Path) -> None:
    settings = settings_of(manifest)
    with pytest.raises(CheckpointError, match="not finite"):
        find_boxes(Finds(float("nan")), annotated_of(settings), settings, CPU)
    with pytest.raises(Stopped):
        find_boxes(Finds(), annotated_of(settings), settings, CPU, stop_asked=lambda: True)


class Counts(nn.Module):
    def forward(self, images: list[Tensor], targets: list[Any]) -> dict[str, Tensor]:
        self.seen = [*getattr(self, "seen", []), len(images)]
        return {"loss_a": torch.tensor(float(len(images))), "loss_b": torch.tensor(2.0)}


@pytest.mark.parametrize("parts", [1, 2])
def test_detecting__parts_of_a_batch_are_means_over_parts(manifest: Path, parts: int) -> None:
    settings = settings_of(manifest, f"train.accumulation_steps={parts}")
    train, model = annotated_of(settings), Counts()
    task = Detecting(model, train, RunContext(settings))
    batch = Batch([torch.zeros(4, 1, 32, 32, dtype=torch.uint8)], torch.arange(4), 0, 0)
    losses: Iterator[dict[str, Tensor]] = task.losses(batch, measure=True)
    outputs = list(losses)
    assert model.seen == [4 // parts] * parts
    assert sum(float(part["loss"]) for part in outputs) == 4 / parts + 2
    assert set(outputs[0]) == {"loss", "loss_a", "loss_b"}


def _gradients(group: Group, settings: RunSettings) -> dict[str, NDArray[np.float32]]:
    """Return what a step of this process's share of a batch leaves: gradients, and statistics of batch norm."""
    train = annotated_of(settings)
    model = create_detector(create_backbone(settings.model, seed=0, size=32), settings, len(train.labels)).train()
    sync_batch_norm(model, lambda own: group.gather_trained(own, "statistics"))
    task = Detecting(model, train, RunContext(settings, group=group))
    order = StepOrder(0, len(train), settings.detection.global_batch_size, 1)
    for part in task.losses(next(detector_batches(train, settings, order, 0, group.share)), measure=False):
        part["loss"].backward()
    settle_statistics(model)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    found |= {name: value for name, value in model.named_buffers() if name.endswith("running_var")}
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.slow
def test_detecting__two_processes_come_to_the_gradient_of_one(manifest: Path) -> None:
    """With batch norms in encoder and pyramid, and an encoder that ends in layers no level needs."""
    settings = settings_of(manifest, "detection.global_batch_size=8", "model.backbone=test_efficientnet")
    with torch.random.fork_rng():
        whole = _gradients(ALONE, settings)
    for found in run_together(2, _gradients, settings):
        assert found.keys() == whole.keys()
        for name, expected in whole.items():
            assert np.linalg.norm(found[name] - expected) < 1e-3 * np.linalg.norm(expected) + 1e-9, name
