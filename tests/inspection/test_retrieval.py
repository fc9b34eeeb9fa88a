from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from medmoco.data.augment.views import whole_view
from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.errors import CheckpointError, ManifestError
from medmoco.evaluation.features.features import thumbnails
from medmoco.evaluation.features.inputs import load_splits
from medmoco.inspection import retrieval as module
from medmoco.inspection.retrieval import (
    AMOUNTS,
    Perturbation,
    Placed,
    load_projector,
    perturb,
    place,
    place_split,
    placement,
)
from medmoco.training.checkpoint import keep_as_best, load_checkpoint, save_checkpoint
from tests.helpers.looks import make_data, make_run, names_a_secret


def unit(seed: int, rows: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator), dim=1)


def plain_loop(images: Tensor, start: int, perturbation: Tensor) -> tuple[list[int], list[int]]:
    nearer, ties = [], []
    for m in range(len(perturbation)):
        own = float(images[start + m].double() @ perturbation[m].double())
        others = [float(images[start + m].double() @ images[j].double()) for j in range(len(images)) if j != start + m]
        nearer.append(sum(cosine > own + 1e-6 for cosine in others))
        ties.append(sum(abs(cosine - own) <= 1e-6 for cosine in others))
    return nearer, ties


@pytest.mark.parametrize("cells", [1, 40, 2**22])
@pytest.mark.parametrize(("start", "count"), [(0, 30), (7, 9), (29, 1)])
def test_place__agrees_with_a_plain_loop(monkeypatch: pytest.MonkeyPatch, start: int, count: int, cells: int) -> None:
    """With copies of images among the images and among the perturbations, so that there are ties."""
    monkeypatch.setattr(module, "_CELLS", cells)
    images = unit(0, 30)
    images[20:] = images[:10]
    near = normalize(images[start : start + count] + 0.4 * unit(1, count), dim=1)
    copies = images[(torch.arange(count) + start + 3) % 30]
    for perturbation, found in zip((near, copies), place(images, start, [near, copies]), strict=True):
        nearer, ties = plain_loop(images, start, perturbation)
        assert found.nearer.tolist() == nearer
        assert found.ties.tolist() == ties
    assert sum(ties) > 0


def test_place__an_encoder_that_tells_nothing_is_at_chance() -> None:
    images = unit(0, 1).expand(50, -1)
    (found,) = place(images, 0, [images])
    assert set(found.ranks()) == {25.5}
    assert found.found(5).mean() == pytest.approx(5 / 50)
    assert found.found(50).mean() == 1


def test_place__random_features_are_at_chance() -> None:
    (found,) = place(unit(0, 2000, 16), 0, [unit(1, 2000, 16)])
    assert found.found(100).mean() == pytest.approx(100 / 2000, abs=0.02)
    assert np.median(found.ranks()) == pytest.approx(1000, abs=60)


def test_placed__ties_share_the_places() -> None:
    placed = Placed(np.array([0, 3, 3]), np.array([0, 0, 3]))
    assert placed.ranks().tolist() == [1, 4, 5.5]  # the last may be at 4, 5, 6 or 7
    assert placed.found(1).tolist() == [1, 0, 0]
    assert placed.found(5).tolist() == [1, 1, 0.5]


def test_place_split__what_an_encoder_ignores_is_at_rank_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row profiles do not change when an image is mirrored; raw pixels do. The perturbations come in several parts."""

    class Profile(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            return views.mean((1, 3)) - views.mean((1, 2, 3))[:, None]

    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 5)
    settings = make_data(tmp_path)
    val = load_splits(settings, ("val",))["val"]
    encoders = {"profile": Profile(), "pixels": thumbnails()}
    perturbations = [Perturbation("flip", None), Perturbation("rotate", 170.0)]
    said: list[str] = []
    found = place_split(
        val, encoders, {"pixels": nn.Linear(1024, 2)}, perturbations, settings.views, settings, said.append
    )
    assert {name for name, _ in found} == {"profile", "pixels", "pixels embedding"}
    assert all(len(placed.nearer) == len(placed.ties) == 12 for placed in found.values())
    assert set(found["profile", "flip"].ranks()) == {1}
    assert found["profile", "rotate:170"].ranks().mean() > 3
    assert found["pixels", "flip"].ranks().mean() > 2
    assert said[1:] == [
        "ranking perturbed copies of images 1 to 5",
        "ranking perturbed copies of images 6 to 10",
        "ranking perturbed copies of images 11 to 12",
    ]
    # Whole images against themselves, by hand: pixels and their mirror images.
    canvases = [whole_view(to_canvas(read_image(file), 64, 8), 64) for file in val.files]
    views = (torch.from_numpy(np.stack(canvases))[:, None] / 255 - 0.5) / 0.25
    images, mirrored = (normalize(thumbnails()(views), dim=1) for views in (views, views.flip(-1)))
    assert found["pixels", "flip"].nearer.tolist() == plain_loop(images, 0, mirrored)[0]


def test_placement__files_hold_what_is_promised(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "evaluate.where=Easy == 1")
    out = tmp_path / "out"
    table = placement(settings, {"run": make_run(settings)}, out, perturbations=["flip", "crop:0.4", "flip"])
    records = json.loads((out / "placement.json").read_text(), parse_constant=pytest.fail)
    encoders = ["run", "run embedding", "untrained", "pixels"]
    wanted = [(encoder, perturbation) for encoder in encoders for perturbation in ("flip", "crop:0.4")]
    assert [(record["encoder"], record["twin"]) for record in records] == wanted
    histogram = pd.read_csv(out / "histogram.csv")
    for record in records:
        chosen = histogram[(histogram["encoder"] == record["encoder"]) & (histogram["twin"] == record["twin"])]
        assert chosen["images"].sum() == record["n"] == record["n_patients"] == 6
        assert chosen["rank"].is_monotonic_increasing
        assert chosen["rank"].between(1, 6).all()
        assert np.median(np.repeat(chosen["rank"], chosen["images"])) == record["median_rank"]
        assert [entry["k"] for entry in record["recall"]] == [1, 5]
        for entry in record["recall"]:
            assert 0 <= entry["low"] <= entry["recall"] <= entry["high"] <= 1
            assert entry["chance"] == pytest.approx(entry["k"] / 6)
    assert (out / "table.txt").read_text() == table
    assert "val: 6 images of 6 patients, where Easy == 1" in table
    assert not names_a_secret(*out.iterdir())


def test_placement__is_the_same_again_and_for_any_part_of_the_rows(tmp_path: Path) -> None:
    """A row's augmented view does not depend on what else is ranked."""
    settings = make_data(tmp_path)
    first = placement(settings, {"run": "random"}, tmp_path / "a", perturbations=["view"])
    assert placement(settings, {"run": "random"}, tmp_path / "b", perturbations=["view"]) == first
    val = load_splits(settings, ("val",))["val"]
    canvases = [to_canvas(read_image(file), 64, 8) for file in val.files]
    kinds, views = [Perturbation("view", None)], settings.views
    every = perturb(canvases, np.arange(12), perturbations=kinds, views=views, rows=val.rows, seed=0)
    part = perturb(canvases[6:], np.arange(6), perturbations=kinds, views=views, rows=val.rows[6:], seed=0)
    np.testing.assert_array_equal(part, every[6:])


def test_placement__views_are_of_the_runs_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def place_nothing(split: Any, encoders: Any, heads: Any, perturbations: Any, views: Any, *_: Any) -> Any:
        seen.append((views, list(encoders), list(heads), [str(perturbation) for perturbation in perturbations]))
        return {("run", "view"): Placed(np.zeros(12, np.int64), np.zeros(12, np.int64))}

    monkeypatch.setattr(module, "place_split", place_nothing)
    run = make_run(make_data(tmp_path, "views.crop_scale=[0.9, 1.0]"))
    other = make_data(tmp_path / "other", "evaluate.size=48")
    placement(other, {"run": run}, tmp_path / "a")
    placement(other, {"run": "random"}, tmp_path / "b")
    (of_run, names, heads, perturbations), (of_settings, *_) = seen
    assert (of_run.crop_scale, of_settings.crop_scale) == ((0.9, 1.0), (0.3, 1.0))
    assert of_run.size == of_settings.size == 48
    assert (names, heads) == (["run", "untrained", "pixels"], ["run"])
    assert perturbations == ["flip", "rotate:10", "crop:0.7", "intensity:0.2", "view"]
    assert len(perturbations) == len(AMOUNTS)


def test_intervals__are_of_patients_and_exact_at_the_edges(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "evaluate.bootstrap=4000")
    generator = np.random.default_rng(0)
    of_patient = generator.random(60) < 0.5
    found = np.stack([np.repeat(of_patient, 5), np.ones(300), np.zeros(300)]).astype(float)
    low, high = module._intervals(found, np.repeat(np.arange(60), 5), settings)
    half = 1.96 * np.sqrt(found[0].mean() * (1 - found[0].mean()) / 60)  # 60 cases, not 300
    assert high[0] - low[0] == pytest.approx(2 * half, rel=0.1)
    assert (low[1], high[1]) == (pytest.approx(0.025 ** (1 / 60)), 1)
    assert (low[2], high[2]) == (0, pytest.approx(1 - 0.025 ** (1 / 60)))


def test_load_projector__is_the_runs(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "method.projector=mlp_bn", "method.embedding_dim=7")
    run = Path(make_run(settings))
    layers = load_projector(run, settings)
    assert layers(torch.zeros(2, 512)).shape == (2, 7)
    assert not layers.training
    keep_as_best(run / "checkpoints", load_checkpoint(run / "checkpoints", pytest.fail)["step"], run / "best")
    save_checkpoint(run / "checkpoints", 9, {"model": {}})
    best = load_projector(run / "best", settings).state_dict()
    assert all(torch.equal(value, best[name]) for name, value in layers.state_dict().items())
    with pytest.raises(CheckpointError, match="step 9 does not contain the projector"):
        load_projector(run, settings)


def test_placement__one_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="needs at least two val images"):
        placement(make_data(tmp_path, "evaluate.where=Easy == 1 and Hard == 1 and PatientID == planted-val-1"),
                  {"run": "random"}, tmp_path / "out")  # fmt: skip


def test_placement__of_several_encoders_side_by_side_with_figures(tmp_path: Path) -> None:
    settings, out = make_data(tmp_path), tmp_path / "out"
    sources = {"ours": make_run(settings), "again": make_run(settings), "none": "random"}
    table = placement(settings, sources, out, perturbations=["flip", "rotate:90"])
    records = json.loads((out / "placement.json").read_text())
    of_flip = {record["encoder"]: record for record in records if record["twin"] == "flip"}
    assert list(of_flip) == ["ours", "ours embedding", "again", "again embedding", "untrained", "pixels"]
    assert of_flip["ours"]["recall"] == of_flip["again"]["recall"]
    assert "again embedding" in table
    for name in ("ranks_flip.svg", "ranks_rotate_90.svg"):
        assert "rank of the perturbed copy, 1 is the nearest" in (out / name).read_text()


def test_line__is_the_share_of_perturbations_at_each_rank_or_a_better_one() -> None:
    placed = Placed(np.array([0, 0, 4, 8]), np.zeros(4, np.int64))
    line = module._line("a", placed, 0)
    assert list(zip(line.x, line.y, strict=True)) == [(1, 0.5), (5, 0.75), (9, 1.0)]
    late = module._line("a", Placed(np.array([2, 2, 3]), np.array([0, 0, 1])), 0)
    assert list(zip(late.x, late.y, strict=True)) == [(1, 0), (3, 2 / 3), (4.5, 1.0)]
