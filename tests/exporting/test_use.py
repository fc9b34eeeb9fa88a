"""Every example of docs/use.md, run where medmoco cannot be imported, and its numbers against medmoco's own."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco import config
from medmoco.config import load_run
from medmoco.data.augment.normalisation import to_float
from medmoco.data.augment.views import whole_view
from medmoco.data.image_io.images import read_canvas
from medmoco.datasets.phantoms.phantom import phantom
from medmoco.errors import ImageError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.supervised.classifier import load_classifier
from medmoco.evaluation.supervised.classifier_folder import (
    describe_classifier,
    save_classifier,
)
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.exporting.contract import preprocessing
from medmoco.exporting.export import FORMATS
from medmoco.exporting.subject import subject_of
from medmoco.models.backbones import Backbone

PAGE = Path(__file__).parents[2] / "docs/use.md"
LABELS = ("Opacity", "Edema")

# Runs the blocks of argv[1], the first of which makes `image`, for each film of argv[2]; writes what they end with.
# Films to train on are those of the folder "images".
RUNNER = """
import json, shutil, sys
from pathlib import Path
import numpy as np
blocks, films = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
sys.path.insert(0, '')
found = {}
for number, film in enumerate(films):
    shutil.copyfile(film, 'film.dcm')
    first = {}
    exec(blocks[0], first)
    for place, block in enumerate(blocks):
        given = {'image': first['image'], 'contract': first['contract'], 'prepare': first['prepare']}
        if 'files]' in block:
            import torch
            torch.manual_seed(0)
            given |= {'files': sorted(Path('images').iterdir()), 'labels': torch.tensor([[0.0], [1.0], [0.0], [1.0]])}
        exec(block, given)
        for name in ('features', 'probabilities', 'loss'):
            if name in given:
                value = given[name]
                found[f'{number}/{place}/{name}'] = value.detach().numpy() if hasattr(value, 'detach') else value
np.savez('found.npz', loaded=sorted({'torch', 'medmoco'} & {k for k, v in sys.modules.items() if v}), **found)
"""


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, exported: tuple[Path, Path]) -> Path:
    """The folder that the page speaks of; beside it the run, a classifier folder and phantoms."""
    run, export = exported
    folder = tmp_path_factory.mktemp("use")
    desk = folder / "desk"
    shutil.copytree(export, desk / "exported")
    shutil.copyfile(export / "prepare.py", desk / "prepare.py")
    (folder / "run").symlink_to(run)
    settings = load_run(run)
    encoder = subject_of(load_encoder(str(run), settings))

    torch.manual_seed(1)
    head = nn.Linear(encoder.backbone.feature_dim, len(LABELS))
    facts = describe_classifier(
        settings, LABELS, trained="fine-tuned", encoder={}, val_auroc=dict.fromkeys(LABELS),
        operating_points={name: [] for name in LABELS},
        calibration={name: {"kind": "platt", "slope": 0.5, "intercept": -0.2} for name in LABELS},
    )  # fmt: skip
    save_classifier(folder / "tuned", ClassifierNetwork(encoder.backbone, head), facts | {"mirror": True})
    classifier = subject_of(load_classifier(folder / "tuned"))
    (desk / "classifier").mkdir()
    FORMATS["onnx"].write(classifier, desk / "classifier")
    contract = preprocessing(classifier, {}, desk / "classifier")
    (desk / "classifier/preprocessing.json").write_text(json.dumps(contract))

    phantom(folder / "phantoms", patients=4, image_size=96, formats=["dicom"])
    (desk / "images").mkdir()
    for number, film in enumerate(films_of(desk)[:4]):
        shutil.copy(film, desk / f"images/{number}.dcm")
    (folder / "blocked").mkdir()
    (folder / "blocked/medmoco.py").write_text("raise ImportError('an export needs no medmoco')")
    return desk


@pytest.fixture(scope="module")
def every_format(place: Path) -> Path:
    """The same folder, where the export holds every format."""
    encoder = subject_of(load_encoder(str(place.parent / "run"), load_run(place.parent / "run")))
    for name in ("torchvision", "huggingface", "monai-bundle", "program"):
        FORMATS[name].write(encoder, place / "exported")
    return place


def films_of(place: Path) -> list[Path]:
    return sorted((place.parent / "phantoms").rglob("*.dcm"))


def run_examples(place: Path, blocks: Sequence[str], films: Sequence[Path]) -> dict[str, NDArray[Any]]:
    (place / "blocks.json").write_text(json.dumps(blocks))
    (place / "films.json").write_text(json.dumps([str(film) for film in films]))
    run_alone([sys.executable, "-c", RUNNER, "blocks.json", "films.json"], place)
    with np.load(place / "found.npz") as found:
        return dict(found)


def run_alone(command: Sequence[str], place: Path) -> None:
    paths = {"PYTHONPATH": str(place.parent / "blocked"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=place, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def backbone_of(place: Path) -> tuple[Backbone, config.RunSettings]:
    settings = load_run(place.parent / "run")
    return subject_of(load_encoder(str(place.parent / "run"), settings)).backbone, settings


def view_of(film: Path, settings: config.RunSettings) -> torch.Tensor:
    """(1, 1, S, S) as medmoco evaluates."""
    canvas, _ = read_canvas(film, 1, settings.data)
    view = torch.from_numpy(whole_view(canvas, settings.views.size))[None, None]
    return to_float(view, settings.views, torch.device("cpu"), channels_last=False)


def check(found: NDArray[Any], expected: torch.Tensor, tolerance: float) -> None:
    wanted = expected.numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["phantoms", "real"])
def test_use__films_to_features_and_probabilities_without_torch(
    place: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    backbone, settings = backbone_of(place)
    folder = request.getfixturevalue("shared") / "data/dicom" if kind == "real" else place.parent / "phantoms"
    films, views = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on what is odd in a header
        for film in sorted(folder.rglob("*.dcm")):
            try:
                views.append(view_of(film, settings))
                films.append(film)
            except ImageError:  # which medmoco refuses: nothing to compare with
                continue
    assert len(films) >= (26 if kind == "real" else 3)
    blocks = [block for block in blocks_of("python") if "import onnxruntime" in block]
    assert len(blocks) == 2
    found = run_examples(place, blocks, films)
    assert found["loaded"].size == 0
    tuned = load_classifier(place.parent / "tuned")
    with torch.inference_mode():
        features = [backbone(view) for view in views]
        scores = [tuned.module(view) for view in views]
    calibration = [tuned.calibrations[name] for name in LABELS]
    for number in range(len(films)):
        check(found[f"{number}/0/features"], features[number], 1e-4)
        probabilities = [line.probabilities(scores[number][:, i].numpy()) for i, line in enumerate(calibration)]
        check(found[f"{number}/1/probabilities"], torch.from_numpy(np.stack(probabilities, 1)), 1e-4)
    assert np.ptp(torch.cat(features).numpy(), 0).max() > 0.01  # films differ


@pytest.mark.slow
def test_use__every_other_library_gives_the_same_features_and_a_new_head_learns(every_format: Path) -> None:
    backbone, settings = backbone_of(every_format)
    film = films_of(every_format)[0]
    blocks = blocks_of("python")
    found = run_examples(every_format, blocks, [film])
    assert found["loaded"].tolist() == ["torch"]
    with torch.inference_mode():
        expected = backbone(view_of(film, settings))
    compared = [key for key in found if key.endswith("features")]
    assert len(compared) == 6  # ONNX Runtime, torch.export, safetensors, timm, torchvision, MONAI
    for key in compared:
        check(found[key], expected, 1e-4 if key.startswith("0/0/") else 1e-5)
    (head,) = (number for number, block in enumerate(blocks) if "reset_classifier" in block)
    assert found[f"0/{head}/probabilities"].shape == (4, 1)
    assert found[f"0/{head}/loss"] < 0.3  # ln 2 is what knowing nothing costs


@pytest.mark.slow
def test_use__the_bundle_runs_from_the_command_line(every_format: Path) -> None:
    backbone, settings = backbone_of(every_format)
    films = sorted((every_format / "images").iterdir())
    (command,) = [block for block in blocks_of("bash") if "monai.bundle" in block]
    run_alone(["bash", "-c", command], every_format)
    with (every_format / "results/features.csv").open() as stream:
        rows = {Path(row[0]).name: [float(cell) for cell in row[1:]] for row in list(csv.reader(stream))[1:]}
    assert sorted(rows) == sorted(film.name for film in films)
    for film in films:
        with torch.inference_mode():
            check(np.array([rows[film.name]]), backbone(view_of(film, settings)), 1e-5)


def test_use__examples_are_short() -> None:
    blocks = blocks_of("python")
    assert len(blocks) == 8
    for block in blocks:
        lines = [line for line in block.splitlines() if line and not line.startswith(("import ", "from "))]
        assert len(lines) <= (13 if "reset_classifier" in block else 6)
