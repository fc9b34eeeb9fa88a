from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from medmoco import config
from medmoco.data.augment.views import draw, unchanged
from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.emptiness import Emptiness, check_masks, masks_of
from medmoco.data.loading.loading import read_canvases, training_batches
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import ImageError, ManifestError

COUNT, SIDE = 6, 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images that are bright in a rectangle alone, and masks of the same rectangles."""
    rng = np.random.default_rng(0)
    lines = ["Path,Mask"]
    (tmp_path / "masks").mkdir()
    for number in range(COUNT):
        x, y = rng.integers(2, 15, 2)
        mask = np.zeros((SIDE, SIDE - 8), np.uint8)
        mask[y : y + 16, x : x + 12] = 255
        image = np.where(mask > 0, rng.integers(120, 256, mask.shape), 0).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"secret-{number}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"secret-{number}.png"), mask)
        lines.append(f"secret-{number}.png,masks/secret-{number}.png")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def make_settings(folder: Path, *overrides: str) -> config.RunSettings:
    base = [
        "out=run", f"data.manifest={folder}", f"data.root={folder}", f"data.canvas_size={SIDE}", "views.size=32",
        "views.blur_probability=0", "views.noise_probability=0", "views.jitter_probability=0", "data.workers=0",
        "decoder.weight=1", "train.device=cpu",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])


def train_split(settings: config.RunSettings) -> Split:
    return load_manifest(settings.data, ["train"])["train"]


@pytest.mark.parametrize("kind", [("decoder.empty=threshold",), ("decoder.empty=mask", "decoder.mask=Mask")])
def test_training_batches__weights_lie_on_what_the_view_shows(folder: Path, kind: tuple[str, ...]) -> None:
    """Crops, mirroring and rotation are the view's own: where it is bright it counts, where it is black it does not."""
    settings = make_settings(folder, *kind, "views.rotation=40")
    for batch in training_batches(train_split(settings), settings, StepOrder(0, COUNT, 3, 2), 0):
        (weights,) = batch.weights
        assert weights.dtype == torch.uint8
        assert weights.shape == batch.views[0].shape
        bright, counts = batch.views[0] > 0, weights > 0
        assert 0.05 < counts.float().mean() < 0.9
        assert (bright == counts).float().mean() > 0.97  # they differ at edges, by interpolation


def test_training_batches__without_empty_space_there_are_no_weights(folder: Path) -> None:
    settings = make_settings(folder)
    batch = next(iter(training_batches(train_split(settings), settings, StepOrder(0, COUNT, 3, 1), 0)))
    assert batch.weights == ()


def test_training_batches__both_directions_have_their_weights(folder: Path) -> None:
    both = ("method.symmetric=true", "method.negatives=other_images", "decoder.empty=threshold")
    settings = make_settings(folder, *both)
    batch = next(iter(training_batches(train_split(settings), settings, StepOrder(0, COUNT, 3, 1), 0)))
    for view, weights in zip((batch.views[0], batch.views[2]), batch.weights, strict=True):
        assert ((view > 0) == (weights > 0)).float().mean() > 0.97


def test_weights__outside_are_the_corners_that_a_rotation_shows(folder: Path) -> None:
    settings = make_settings(folder, "decoder.empty=outside")
    canvas = Canvas(np.full((SIDE, SIDE), 200, np.uint8), SIDE, SIDE)
    emptiness = Emptiness(train_split(settings), settings.data, settings.decoder)
    still = unchanged([canvas, canvas])
    turned = type(still)(**{**still.__dict__, "angle": np.deg2rad([0.0, 45.0])})
    plain, corners = emptiness.weights([canvas, canvas], np.array([0, 1]), turned, 64)[:, 0]
    assert (plain == 255).all()
    rows, columns = np.mgrid[:64, :64] - 31.5
    inside = np.abs(rows) + np.abs(columns)  # a square turned by 45 degrees, whose edges lie 32 from the middle
    assert (corners[inside < 32 * 2**0.5 - 3] == 255).all()
    assert (corners[inside > 32 * 2**0.5 + 3] == 0).all()


def test_weights__threshold_is_a_share_of_white_at_any_depth(folder: Path) -> None:
    for bits in (8, 16):
        settings = make_settings(folder, "decoder.empty=threshold", "decoder.threshold=0.25", f"data.bit_depth={bits}")
        white = 2**bits - 1
        pixels = np.full((SIDE, SIDE), white // 2, (settings.data.bit_depth == 8 and np.uint8) or np.uint16)
        pixels[:, :20] = white // 5
        canvas = Canvas(pixels, SIDE, SIDE)
        emptiness = Emptiness(train_split(settings), settings.data, settings.decoder)
        weights = emptiness.weights([canvas], np.array([0]), unchanged([canvas]), SIDE)[0, 0]
        assert (weights[:, :20] == 0).all()
        assert (weights[:, 20:] == 255).all()


def test_weights__a_mask_of_another_shape_is_named_by_its_row(folder: Path) -> None:
    settings = make_settings(folder, "decoder.empty=mask", "decoder.mask=Mask")
    split = train_split(settings)
    cv2.imwrite(str(folder / "masks" / "secret-4.png"), np.full((20, 40), 255, np.uint8))
    canvases, _ = read_canvases(split, np.array([4]), settings)
    drawn = draw(settings.views, canvases, seed=0, epoch=0, samples=np.array([4]), view=0)
    emptiness = Emptiness(split, settings.data, settings.decoder)
    with pytest.raises(
        ImageError, match=r"^train\.csv row 6, column Mask: the mask differs from its image in shape"
    ) as caught:
        emptiness.weights(canvases, np.array([4]), drawn, 32)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Path\nsecret-0.png\n", r"has no column Mask, which decoder\.mask names; it has: Path"),
        ("Path,Mask\nsecret-0.png,\n", r"row 2: in column Mask, Path is blank"),
        ("Path,Mask\nsecret-0.png,../masks/secret-0.png\n", r"row 2: in column Mask, Path leaves data\.root"),
        ("Path,Mask\nsecret-0.png,masks/secret-9.png\n", r"1 of 1 train files do not exist \(rows 2\);\n.*Mask column"),
    ],
)
def test_check_masks__what_cannot_be_used_is_said_before_training(folder: Path, text: str, expected: str) -> None:
    (folder / "train.csv").write_text(text)
    settings = make_settings(folder, "decoder.empty=mask", "decoder.mask=Mask")
    with pytest.raises(ManifestError, match=expected) as caught:
        check_masks(train_split(settings), settings.data, settings.decoder)
    assert "secret-" not in str(caught.value)


def test_check_masks__paths_of_masks_are_read_like_those_of_images(folder: Path) -> None:
    cells = [
        "masks\\secret-0.png",
        f"{folder}/masks/secret-1.png",
        str(folder / "masks/secret-2.png").replace("/", "\\"),
    ]
    rows = "".join(f"secret-{number}.png,{cell}\n" for number, cell in enumerate(cells))
    (folder / "train.csv").write_text(f"Path,Mask\n{rows}")
    settings = make_settings(folder, "decoder.empty=mask", "decoder.mask=Mask")
    masks = masks_of(train_split(settings), settings.data, settings.decoder)
    assert masks is not None
    assert masks.files.tolist() == [f"{folder}/masks/secret-{number}.png" for number in range(3)]
    check_masks(train_split(settings), settings.data, settings.decoder)
