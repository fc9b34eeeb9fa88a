from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from medmoco import config
from medmoco.data.augment.views import draw, render, whole_view
from medmoco.data.image_io.fingerprints import canvas_digest
from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.data.loading.loading import (
    canvas_reader,
    check_images,
    evaluation_batches,
    read_canvases,
    training_batches,
)
from medmoco.data.loading.pairs import ONE_VIEW, Partners
from medmoco.data.loading.sampler import Share, StepOrder, key_order, substitute
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import DataError, ImageError, ManifestError


@pytest.fixture
def settings(tmp_path: Path) -> config.RunSettings:
    rng = np.random.default_rng(0)
    lines = ["Path"]
    for number in range(13):
        Image.fromarray(rng.integers(0, 256, (40, 30 + number), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    overrides = [
        "out=run", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.canvas_size=32", "views.size=24",
        "evaluate.batch_size=5", "train.device=cpu",
    ]  # fmt: skip
    return config.load(None, overrides)


def with_workers(settings: config.RunSettings, workers: int) -> config.RunSettings:
    return settings.model_copy(update={"data": settings.data.model_copy(update={"workers": workers})})


def train_split(settings: config.RunSettings) -> Split:
    return load_manifest(settings.data, ["train"])["train"]


ORDER = StepOrder(seed=0, samples=13, batch_size=4, epochs=2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_batches__are_the_drawn_views_in_order_whatever_the_workers(
    settings: config.RunSettings, workers: int
) -> None:
    split = train_split(settings)
    batches = list(training_batches(split, with_workers(settings, workers), ORDER, 2))
    assert [batch.step for batch in batches] == [2, 3, 4, 5]
    for batch, key in zip(batches, ORDER.from_step(2), strict=True):
        np.testing.assert_array_equal(batch.samples.numpy(), key.samples)
        orders = key.samples, key.samples[key_order(0, key.step, 4)]
        for view, (made, samples) in enumerate(zip(batch.views, orders, strict=True)):
            canvases = [to_canvas(read_image(split.files[sample]), 32, 8) for sample in samples]
            drawn = draw(settings.views, canvases, seed=0, epoch=key.epoch, samples=samples, view=view)
            np.testing.assert_array_equal(made.numpy(), render(settings.views, canvases, [drawn])[0])
            assert made.dtype == torch.uint8


@pytest.mark.parametrize("processes", [1, 2])
def test_training_batches__in_both_directions_and_with_partners(
    settings: config.RunSettings, tmp_path: Path, processes: int
) -> None:
    """Each view of a pair is that of the second of its images, whether it is a query or a key."""
    lines = [f"{number}.png,{number // 4}" for number in range(13)]
    (tmp_path / "train.csv").write_text("\n".join(["Path,PatientID", *lines]))
    chosen = settings.model_copy(update={
        "method": config.MethodSettings(symmetric=True, negatives="other_patients"),
        "positives": config.PositiveSettings(image="patient"),
    })  # fmt: skip
    split = train_split(chosen)
    partners = Partners(split, chosen.positives, 0)
    shares = [list(training_batches(split, chosen, ORDER, 4, Share(rank, processes))) for rank in range(processes)]
    for batches in zip(*shares, strict=True):
        key = ORDER.batch(batches[0].step)
        shuffled = key.samples[key_order(0, key.step, 4)]
        expected = [
            (0, key.samples), (1, partners.of(shuffled, key.epoch)),
            (1, partners.of(key.samples, key.epoch)), (0, shuffled),
        ]  # fmt: skip
        for number, (view, samples) in enumerate(expected):
            canvases = [to_canvas(read_image(split.files[sample]), 32, 8) for sample in samples]
            drawn = draw(chosen.views, canvases, seed=0, epoch=key.epoch, samples=samples, view=view)
            made = torch.cat([batch.views[number] for batch in batches])
            np.testing.assert_array_equal(made.numpy(), render(chosen.views, canvases, [drawn])[0])


@pytest.mark.parametrize("processes", [2, 4])
def test_training_batches__shares_of_all_processes_are_the_whole(settings: config.RunSettings, processes: int) -> None:
    split = train_split(settings)
    shares = [list(training_batches(split, settings, ORDER, 1, Share(rank, processes))) for rank in range(processes)]
    for step, whole_batch in enumerate(training_batches(split, settings, ORDER, 1)):
        parts = [batches[step] for batches in shares]
        assert all(len(part.samples) == 4 // processes for part in parts)
        assert torch.equal(torch.cat([part.samples for part in parts]), whole_batch.samples)
        for view in range(2):
            assert torch.equal(torch.cat([part.views[view] for part in parts]), whole_batch.views[view])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches__are_whole_images_in_row_order(settings: config.RunSettings, workers: int) -> None:
    split = train_split(settings)
    batches = list(evaluation_batches(split, with_workers(settings, workers), 24))
    assert [len(batch.samples) for batch in batches] == [5, 5, 3]
    assert torch.equal(torch.cat([batch.samples for batch in batches]), torch.arange(13))
    views = torch.cat([batch.views[0] for batch in batches])
    for sample in (0, 7, 12):
        canvas = to_canvas(read_image(split.files[sample]), 32, 8)
        np.testing.assert_array_equal(views[sample, 0].numpy(), whole_view(canvas, 24))
        assert batches[sample // 5].digests[sample % 5] == canvas_digest(canvas)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches__an_unreadable_image_is_named_by_row(
    settings: config.RunSettings, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "7.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"^train\.csv row 9: ") as caught:
        list(evaluation_batches(train_split(settings), with_workers(settings, workers), 24))
    assert "7.png" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_batches__one_view_is_that_of_the_queries(settings: config.RunSettings, workers: int) -> None:
    split, settings = train_split(settings), with_workers(settings, workers)
    pairs = training_batches(split, settings, ORDER, 1)
    singles = list(training_batches(split, settings, ORDER, 1, plan=ONE_VIEW))
    for pair, single in zip(pairs, singles, strict=True):
        assert len(single.views) == 1
        assert torch.equal(single.views[0], pair.views[0])
        assert torch.equal(single.samples, pair.samples)


def quarantined(settings: config.RunSettings) -> config.RunSettings:
    return settings.model_copy(update={"data": settings.data.model_copy(update={"bad_images": "quarantine"})})


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches__an_unreadable_image_says_what_to_do(
    settings: config.RunSettings, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "7.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"^train\.csv row 9: .*\n.*data\.bad_images=quarantine") as caught:
        list(training_batches(train_split(settings), with_workers(settings, workers), ORDER, 0))
    assert "7.png" not in str(caught.value)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_training_batches__another_image_takes_a_place_in_both_views(
    settings: config.RunSettings, tmp_path: Path, processes: int
) -> None:
    """Every place shows what it would show if the substitute were there by itself, whoever makes it."""
    split, bad = train_split(settings), {3, 7, 11}
    whole = {sample: to_canvas(read_image(split.files[sample]), 32, 8) for sample in set(range(13)) - bad}
    for sample in bad:
        (tmp_path / f"{sample}.png").write_bytes(b"")
    shares = [
        list(training_batches(split, quarantined(settings), ORDER, 0, Share(rank, processes)))
        for rank in range(processes)
    ]
    replaced = 0
    for key in ORDER.from_step(0):
        parts = [batches[key.step] for batches in shares]
        stands_for = {}
        for sample in key.samples.tolist():
            tried = [sample]
            while tried[-1] in bad:
                tried.append(substitute(0, key.epoch, sample, len(tried), 13))
            stands_for[sample] = tried
        for view, wanted in enumerate((key.samples, key.samples[key_order(0, key.step, 4)])):
            used = np.array([stands_for[sample][-1] for sample in wanted.tolist()])
            canvases = [whole[sample] for sample in used]
            drawn = draw(settings.views, canvases, seed=0, epoch=key.epoch, samples=used, view=view)
            made = torch.cat([part.views[view] for part in parts])
            np.testing.assert_array_equal(made.numpy(), render(settings.views, canvases, [drawn])[0])
            if view == 0:
                assert torch.equal(torch.cat([part.samples for part in parts]), torch.from_numpy(used))
        told = [one for part in parts for one in part.replaced]
        assert sorted((one.view, one.sample, [row for row, _ in one.bad]) for one in told) == sorted(
            (view, sample, [2 + other for other in tried[:-1]])
            for view in range(2)
            for sample, tried in stands_for.items()
            if tried[1:]
        )
        replaced += len(told)
    assert replaced >= 6


def test_batches__workers_start_after_opencv_has_used_its_threads(settings: config.RunSettings) -> None:
    """As in a notebook that draws a preview first."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    image = np.zeros((3000, 3000), np.uint8)
    cv2.warpAffine(image, np.eye(2, 3, dtype=np.float32), (3000, 3000))
    train = settings.train.model_copy(update={"hang_seconds": 40.0})
    patient = with_workers(settings.model_copy(update={"train": train}), 1)
    assert list(evaluation_batches(train_split(settings), patient, 24))
    cv2.setNumThreads(before)


def test_batches__notices_carry_the_row(settings: config.RunSettings, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(tmp_path / "3.png")
    batches = list(evaluation_batches(train_split(settings), settings, 24))
    notices = [notice for batch in batches for notice in batch.notices]
    assert len(notices) == 1
    assert notices[0].startswith("train.csv row 5: ")
    assert "constant" in notices[0]


def test_batches__sixteen_bits_stay_sixteen(settings: config.RunSettings) -> None:
    deep = settings.model_copy(update={"data": settings.data.model_copy(update={"bit_depth": 16})})
    batch = next(iter(training_batches(train_split(settings), deep, ORDER, 0)))
    assert batch.views[0].dtype == torch.uint16


def test_batches__from_a_pack_are_those_from_files(settings: config.RunSettings, tmp_path: Path) -> None:
    make_pack(settings.data, tmp_path / "pack", lambda _: None)
    packed = settings.model_copy(update={"data": settings.data.model_copy(update={"pack": str(tmp_path / "pack")})})
    split = train_split(settings)
    for file in tmp_path.glob("*.png"):
        file.unlink()  # nothing but the pack is read
    images = {"with files": settings, "with a pack": packed}
    with pytest.raises(ManifestError):
        check_images(split, images["with files"].data)
    assert check_images(split, images["with a pack"].data) is split
    for workers in (0, 2):
        batches = list(training_batches(split, with_workers(packed, workers), ORDER, 0))
        assert len(batches) == 6
        whole = list(evaluation_batches(split, with_workers(packed, workers), 24))
        assert sum(len(batch.samples) for batch in whole) == 13


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_batches__pack_and_files_agree_to_the_bit(
    settings: config.RunSettings, tmp_path: Path, workers: int, bit_depth: int
) -> None:
    plain = settings.model_copy(update={"data": settings.data.model_copy(update={"bit_depth": bit_depth})})
    make_pack(plain.data, tmp_path / "pack", lambda _: None)
    packed = plain.model_copy(update={"data": plain.data.model_copy(update={"pack": str(tmp_path / "pack")})})
    split = train_split(plain)
    pairs = zip(
        training_batches(split, with_workers(plain, workers), ORDER, 1),
        training_batches(split, with_workers(packed, workers), ORDER, 1),
        strict=True,
    )
    for files, pack in pairs:
        assert all(torch.equal(one, other) for one, other in zip(files.views, pack.views, strict=True))


def test_check_images__leaves_out_what_could_not_be_packed_and_says_so(
    settings: config.RunSettings, tmp_path: Path
) -> None:
    (tmp_path / "7.png").write_bytes(b"")
    make_pack(settings.data, tmp_path / "pack", lambda _: None)
    update = {"pack": str(tmp_path / "pack"), "pack_failures": "leave_out"}
    data = settings.data.model_copy(update=update)
    split = train_split(settings)
    kept = check_images(split, data)
    assert kept.rows.tolist() == [row for row in split.rows if row != 9]
    assert kept.sha256 != split.sha256
    assert kept.notices[-1] == "train: 1 of 13 rows are left out because their images could not be packed"
    with pytest.raises(DataError, match=r"^train\.csv row 9: its image is not in the pack"):
        read_canvases(split, np.array([6, 7]), settings.model_copy(update={"data": data}))


def test_batches__memory_of_a_worker_stays_flat_over_a_pack(settings: config.RunSettings, tmp_path: Path) -> None:
    """Reading all of a pack maps none of it: what a process holds grows by a fraction of what it has read."""
    size, images = 512, 200  # 52 MB
    data = settings.data.model_copy(update={"canvas_size": size})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)).save(tmp_path / "a.png")
    for number in range(images):
        (tmp_path / f"{number}.png").unlink(missing_ok=True)
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("\n".join(["Path", *(f"{number}.png" for number in range(images))]))
    make_pack(data, tmp_path / "pack", lambda _: None)
    read = canvas_reader(train_split(settings), data.model_copy(update={"pack": str(tmp_path / "pack")}))
    read(np.arange(20))
    before = resident()
    for first in range(0, images, 20):
        read(np.arange(first, first + 20))
    assert resident() - before < 10e6


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
