"""A small data set, and a run folder trained on nothing, for the tests of what one can look at."""

from __future__ import annotations

from pathlib import Path

import cv2

from medmoco import config
from medmoco.models.backbones import create_backbone
from medmoco.models.moco import create_moco
from medmoco.training.checkpoint import save_checkpoint
from tests.helpers.films import film

SIZES = {"train": 14, "val": 12}
SECRETS = ("secret", "planted")


def make_data(folder: Path, *overrides: str) -> config.RunSettings:
    """Write films, two a patient, as "secret-..." of "planted-..."; row 2 of val is that of train again."""
    data = folder / "secret-data"
    for number, (name, size) in enumerate(SIZES.items()):
        (data / name).mkdir(parents=True)
        lines = ["Path,PatientID,Easy,Hard"]
        for place in range(size):
            seed = 1000 * number * bool(place) + place
            cv2.imwrite(str(data / name / f"secret-{place}.png"), film(seed))
            lines.append(f"secret-{place}.png,planted-{name}-{place // 2},{place % 2},{('1', '', '0')[place % 3]}")
        (data / f"{name}.csv").write_text("\n".join(lines) + "\n")
    given = [
        f"out={folder / 'run'}", f"data.manifest={data}", f"data.root={data}/{{split}}", "data.labels=[Easy, Hard]",
        "data.canvas_size=64", "data.workers=0", "views.size=64", "model.backbone=resnet10t", "evaluate.bootstrap=100",
        "evaluate.batch_size=5", "method.queue_size=8", "train.global_batch_size=4", "train.device=cpu",
    ]  # fmt: skip
    return config.load(None, [*given, *overrides])


def make_run(settings: config.RunSettings) -> str:
    """Save an untrained model, of another seed than the control, as a run."""
    model = create_moco(create_backbone(settings.model, seed=5, size=settings.views.size), settings.method, seed=5)
    save_checkpoint(settings.out / "checkpoints", 3, {"model": model.state_dict()})
    (settings.out / "config.yaml").write_text(config.to_yaml(config.as_tree(settings)))
    return str(settings.out)


def names_a_secret(*files: Path) -> bool:
    """Say whether a path or a patient stands in the files."""
    return any(secret.encode() in file.read_bytes() for file in files for secret in SECRETS)
