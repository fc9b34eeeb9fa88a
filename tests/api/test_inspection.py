from __future__ import annotations

from pathlib import Path

import medmoco


def test_neighbours__of_images_by_row(workspace: Path) -> None:
    table = medmoco.neighbours("config.yaml", medmoco.Run("runs/phantoms"), "near.csv", [2, 4], count=3)
    assert len(table) == 6
    assert Path("near.csv").is_file()


def test_projection__writes_a_table_and_figures(workspace: Path) -> None:
    text = medmoco.projection("config.yaml", "runs/phantoms", "plane", split="train", colour="Opacity")
    assert "trustworthiness" in text
    assert {file.name for file in Path("plane").iterdir()} == {"projection.csv", "projection.png", "projection.svg"}


def test_placement__takes_encoders_by_name(workspace: Path) -> None:
    table = medmoco.placement("config.yaml", {"mine": "runs/phantoms"}, "ranks", perturbations=["flip"])
    assert "mine" in table


def test_saliency__draws_a_classifier(workspace: Path) -> None:
    folder = "runs/phantoms/evaluation/classifier"
    assert "Opacity" in medmoco.saliency("config.yaml", folder, "map.png", [2], "Opacity")
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")


def test_reconstruct__draws_a_decoder(workspace: Path) -> None:
    settings = medmoco.load_config(
        "config.yaml", out="runs/decoder", decoder={"weight": 1.0, "channels": 16}, train={"epochs": 1}
    )
    run = medmoco.pretrain(settings, progress=False)
    medmoco.reconstruct(settings, run, "made.png", [2])
    assert Path("made.png").read_bytes().startswith(b"\x89PNG")
