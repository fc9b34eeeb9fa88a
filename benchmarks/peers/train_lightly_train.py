"""LightlyTrain, with the documented settings of a method: DINO, or SimCLR.

Its default, distillation from DINOv2 or DINOv3, needs the weights of the teacher; its documentation recommends DINO
otherwise. Local views are as much smaller than global ones as its documentation has them (96 and 224 pixels).
"""

from __future__ import annotations

import shutil

import lightly_train
import torch

from benchmarks.peers.films import MEAN, STD, Task, clock, read_task


def train(task: Task) -> None:
    """Train, and save the encoder that the library exports."""
    folder = task.out / "lightly_train"
    shutil.rmtree(folder, ignore_errors=True)
    transform = {"image_size": (task.size, task.size), "normalize": {"mean": MEAN, "std": STD}}
    if task.method == "dino":
        local = round(task.size * 96 / 224)
        transform["local_view"] = {"view_size": (local, local)}
    seconds = clock()
    lightly_train.pretrain(
        out=folder, data=[str(film) for film in task.films], model=f"timm/{task.backbone}", method=task.method,
        epochs=task.epochs, num_workers=task.workers, devices=1, accelerator="cpu", seed=task.seed,
        transform_args=transform,
        optim_args={"lr": task.lr} if task.lr else None,
    )  # fmt: skip
    taken = seconds()
    file = folder / "state.pt"
    lightly_train.export(
        out=file, checkpoint=folder / "checkpoints" / "last.ckpt", format="torch_state_dict", overwrite=True
    )
    encoder = task.network()
    state = torch.load(file, weights_only=True)
    encoder.load_state_dict({name: value for name, value in state.items() if name in encoder.state_dict()})
    task.save(encoder, taken, task.epochs * len(task.films))


if __name__ == "__main__":
    train(read_task())
