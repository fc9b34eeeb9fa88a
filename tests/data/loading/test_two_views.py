from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medmoco import config
from medmoco.data.augment.augmentation import Augmentation
from medmoco.data.image_io.images import read_canvas
from medmoco.data.loading.loading import check_images, training_batches
from medmoco.data.loading.sampler import StepOrder, key_order
from medmoco.data.loading.two_views import TwoViews
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import DataError, ImageError, SettingsError
from tests.helpers.packs import make_images, settings_for

IMAGES, BATCH = 13, 4
SMALL = {"size": 24, "data": {"canvas_size": 32}}


@pytest.fixture(autouse=True)
def no_worker_outlives_its_loader() -> Iterator[None]:
    yield
    gc.collect()  # an exception that was caught keeps its loader
    for worker in active_children():
        worker.join(timeout=10)
    assert not active_children()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", train=IMAGES)
    return tmp_path / "images"


def of(folder: Path, **more: object) -> TwoViews:
    return TwoViews(folder, root=folder, **{**SMALL, **more})


def pretraining(settings: config.RunSettings, epochs: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of medmoco's own pretraining, with the keys back in the order of their queries."""
    split = check_images(load_manifest(settings.data, ["train"])["train"], settings.data)
    order = StepOrder(settings.seed, IMAGES, BATCH, epochs)
    made = []
    for batch in training_batches(split, settings, order, 0):
        back = np.argsort(key_order(settings.seed, batch.step, BATCH))
        made.append((batch.views[0], batch.views[1][back]))
    return made


def assert_equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    assert len(one) == len(other)
    for pair, same in zip(one, other, strict=True):
        assert torch.equal(pair[0], same[0])
        assert torch.equal(pair[1], same[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["files", "pack"])
def test_loader__gives_the_batches_of_pretraining_epoch_after_epoch(folder: Path, source: str, workers: int) -> None:
    settings = settings_for(folder)
    pack = None
    if source == "pack":
        pack = folder.parent / "pack"
        make_pack(settings.data, pack, lambda _: None)
    views = of(folder, pack=pack)
    loader = views.loader(BATCH, workers=workers)
    assert len(loader) == 3
    made = [pair for _ in range(3) for pair in loader]
    expected = [(views.to_float(query), views.to_float(key)) for query, key in pretraining(settings, 3)]
    assert made[0][0].dtype == torch.float32
    assert made[0][0].shape == (BATCH, 1, 24, 24)
    assert_equal(made, expected)


def test_loader__keys_are_of_partners_as_in_pretraining(folder: Path) -> None:
    lines = [f"train-{number}.png,{number // 4}" for number in range(IMAGES)]
    (folder / "train.csv").write_text("\n".join(["Path,PatientID", *lines]))
    settings = settings_for(folder, "positives.image=patient", "method.negatives=other_patients")
    made = list(TwoViews(settings).loader(BATCH, workers=0, normalise=False))
    assert_equal(made, pretraining(settings, 1))


def test_loader__as_integers_are_what_to_float_takes(folder: Path) -> None:
    views = of(folder, data={"canvas_size": 32, "bit_depth": 16})
    integers = list(views.loader(BATCH, workers=0, normalise=False))
    views.set_epoch(0)
    floats = list(views.loader(BATCH, workers=0))
    assert integers[0][0].dtype == torch.uint16
    assert_equal([(views.to_float(query), views.to_float(key)) for query, key in integers], floats)


def test_loader__in_the_manifest_s_order_to_the_last_image(folder: Path) -> None:
    views = of(folder)
    batches = list(views.loader(BATCH, workers=0, shuffle=False, drop_last=False))
    assert [len(query) for query, _ in batches] == [4, 4, 4, 1]
    assert_equal(
        [(torch.cat([query for query, _ in batches]), torch.cat([key for _, key in batches]))],
        [tuple(torch.stack(side) for side in zip(*views, strict=True))],
    )


def test_loader__starts_at_the_epoch_that_was_set(folder: Path) -> None:
    views = of(folder)
    loader = views.loader(BATCH, workers=1)
    by_itself = [list(loader) for _ in range(3)]
    loader.sampler.set_epoch(1)
    assert_equal(list(loader), by_itself[1])
    assert_equal(list(loader), by_itself[2])
    next(iter(loader))  # a pass that is given up is a pass
    assert views.epoch == 3


def test_loader__refuses_a_batch_without_images(folder: Path) -> None:
    with pytest.raises(SettingsError, match="batch_size 14 exceeds the 13 images"):
        of(folder).loader(14)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_loader__an_unreadable_image_is_named_by_its_row_alone(folder: Path, workers: int) -> None:
    (folder / "train-7.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"^train\.csv row 9: ") as caught:
        list(of(folder).loader(BATCH, workers=workers))
    assert "train-7" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert "--resume" not in str(caught.value)


def test_items__an_unreadable_image_is_named_by_its_row_in_any_loader(folder: Path) -> None:
    (folder / "train-7.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"train\.csv row 9: ") as caught:
        list(DataLoader(of(folder), batch_size=5, num_workers=1))
    assert "train-7" not in str(caught.value)


@pytest.mark.parametrize(
    ("context", "workers", "copied"),
    [("fork", 2, False), ("fork", 2, True), pytest.param("spawn", 1, False, marks=pytest.mark.slow)],  # torch anew
)
def test_set_epoch__reaches_persistent_workers_of_any_loader(
    folder: Path, context: str, workers: int, copied: bool
) -> None:
    views = pickle.loads(pickle.dumps(of(folder))) if copied else of(folder)
    loader = DataLoader(
        views, batch_size=5, num_workers=workers, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 1, 0):
        views.set_epoch(epoch)
        batches = list(loader)
        samples = [views[sample] for sample in range(IMAGES)]
        expected = [torch.stack(side) for side in zip(*samples, strict=True)]
        assert_equal([(torch.cat([query for query, _ in batches]), torch.cat([key for _, key in batches]))],
                     [(expected[0], expected[1])])  # fmt: skip


def test_items__are_a_function_of_seed_epoch_and_sample(folder: Path) -> None:
    views, other_seed = of(folder), of(folder, seed=1)
    query, key = views[3]
    assert not torch.equal(query, key)
    assert torch.equal(views[3][0], query)
    assert torch.equal(views[3 - IMAGES][0], query)
    assert not torch.equal(other_seed[3][0], query)
    views.set_epoch(1)
    assert not torch.equal(views[3][0], query)
    with pytest.raises(IndexError):
        views[IMAGES]
    assert len(views) == len(views.rows) == len(list(views)) == IMAGES
    assert views.rows[3] == 5


def test_items__are_what_augmentation_makes_of_the_canvas(folder: Path) -> None:
    views = of(folder)
    views.set_epoch(2)
    canvas, _ = read_canvas(folder / "train-3.png", 1, views.settings.data)
    image = canvas.pixels[: canvas.height, : canvas.width]
    augmentation = Augmentation("xray", 24, to_tensor=True)
    for view, expected in enumerate(views[3]):
        assert torch.equal(augmentation(image, sample=3, epoch=2, view=view), expected)


def test_items__a_pickled_copy_has_the_same_and_an_epoch_of_its_own(folder: Path) -> None:
    views = of(folder)
    views.set_epoch(2)
    copy = pickle.loads(pickle.dumps(views))
    assert torch.equal(copy[4][1], views[4][1])
    copy.set_epoch(0)
    assert views.epoch == 2
    assert_equal(list(copy.loader(BATCH, workers=1)), list(of(folder).loader(BATCH, workers=0)))


def test_items__another_image_takes_a_place_with_a_warning(folder: Path) -> None:
    expected = of(folder)
    (folder / "train-7.png").write_bytes(b"")
    views = of(folder, data={"canvas_size": 32, "bad_images": "quarantine"})
    with pytest.warns(UserWarning, match=r"^row 9: .*; another image takes its place$"):
        query, _ = views[7]
    assert any(torch.equal(query, other) for other, _ in expected.__getitems__([*range(7), *range(8, IMAGES)]))


@pytest.mark.parametrize("root", ["{split}", "."])
def test_two_views__a_pack_needs_neither_its_root_nor_its_settings(folder: Path, root: str) -> None:
    (folder / "train").mkdir()
    for file in folder.glob("*.png"):
        file.rename(folder / root.format(split="train") / file.name)
    settings = settings_for(folder, f"data.root={folder / root}", "data.bit_depth=16")
    make_pack(settings.data, folder.parent / "pack", lambda _: None)
    expected = TwoViews(settings)[5]
    for file in folder.rglob("*.png"):
        file.unlink()
    views = TwoViews(folder, pack=folder.parent / "pack", size=24)
    assert views.settings.data.canvas_size == 32
    assert_equal([views[5]], [expected])
    with pytest.raises(SettingsError, match="canvas_size: pack 32, settings 40"):
        TwoViews(folder, pack=folder.parent / "pack", size=24, data={"canvas_size": 40})


def test_two_views__rows_that_a_pack_lacks_are_counted(folder: Path) -> None:
    (folder / "train-7.png").write_bytes(b"")
    make_pack(settings_for(folder).data, folder.parent / "pack", lambda _: None)
    with pytest.raises(DataError, match="rows 9"):
        of(folder, pack=folder.parent / "pack")
    with pytest.warns(UserWarning, match="1 of 13 rows are left out"):
        views = of(folder, pack=folder.parent / "pack", data={"canvas_size": 32, "pack_failures": "leave_out"})
    assert len(views) == 12
    assert 9 not in views.rows


def test_two_views__from_a_settings_file_or_mapping(folder: Path) -> None:
    data = {"manifest": str(folder), "root": str(folder), "canvas_size": 32}
    tree = {"out": "runs/mine", "data": data, "views": {"recipe": "moco_cxr", "size": 24}}
    file = folder / "mine.yaml"
    file.write_text(config.to_yaml(tree))
    for source in (file, tree):
        assert_equal([TwoViews(source)[5]], [of(folder, recipe="moco_cxr")[5]])
        assert_equal([TwoViews(source, recipe="xray", seed=2)[5]], [of(folder, seed=2)[5]])


def test_two_views__arguments_that_cannot_be_used(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"^settings:\n.*data\.root.* is required"):
        TwoViews(folder)
    with pytest.raises(SettingsError, match=r"did you mean 'views\.flip_probability'"):
        of(folder, views={"flip_probabilty": 0})
    with pytest.raises(SettingsError, match="choose from train, val, test"):
        of(folder, split="training")
    with pytest.raises(SettingsError, match="no other argument than split"):
        TwoViews(settings_for(folder), recipe="xray")
