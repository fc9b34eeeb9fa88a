from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import medmoco
from medmoco.errors import ManifestError


def test_report__shows_images_only_when_asked(workspace: Path) -> None:
    assert "<img" not in medmoco.report("runs/phantoms", "plain.html").read_text()
    page = medmoco.report("runs/phantoms", "images.html", images=True).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "This page has pictures that may show patients" in page
    assert "Training images: each line is a whole image" in page
    assert "Nearest neighbours on the val split" in page


@pytest.mark.slow
def test_report__shows_the_images_of_each_run_even_if_their_folders_have_the_same_name(workspace: Path) -> None:
    namesake = shutil.copytree("runs/phantoms", "more/phantoms")
    page = medmoco.report(["runs/phantoms", namesake], "both.html", images=True).read_text()
    assert page.count("data:image/png;base64,") == 4
    for name in ("runs/phantoms", "more/phantoms"):
        assert f"Training images of {name}: each line" in page


def test_report__of_phantoms_says_that_they_are_synthetic(workspace: Path) -> None:
    page = medmoco.report("runs/phantoms", "phantoms.html").read_text()
    assert "synthetic radiographs (phantoms)</h1>" in page
    assert "The images are synthetic phantoms" in page


def test_report__images_without_the_data_are_refused(workspace: Path) -> None:
    moved = shutil.copytree("runs/phantoms", "runs/moved")
    config = Path(moved, "config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["data"] |= {"manifest": "gone", "root": "gone", "pack": None}
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(ManifestError, match="--images: the images of moved cannot be drawn") as raised:
        medmoco.report(moved, "moved.html", images=True)
    assert "or without --images" in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5
    assert not Path("moved.html").exists()
