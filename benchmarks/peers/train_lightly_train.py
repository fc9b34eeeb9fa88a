"""LightlyTrain, with the documented settings of a method: DINO, or SimCLR.

Its default, distillation from DINOv2 or DINOv3, needs the weights of the teacher; its documentation recommends DINO
otherwise. Local views are as much smaller than global ones as its documentation has them (96 and 224 pixels).
"""

from __future__ import annotations

import shutil
from typing import Any

import lightly_train
import torch
from torch import nn

from benchmarks.peers.films import Task, clock, read_task


class Wrapped(nn.Module):
    """The network as a model of LightlyTrain, whose own wrapper takes EfficientNets at an inner, narrower layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def feature_dim(self) -> int:
        """Return the number of channels."""
        return int(self.network.num_features)

    def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature map, (B, F, H, W)."""
        return {"features": self.network.forward_features(x)}

    def forward_pool(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return its mean over all positions, (B, F, 1, 1)."""
        return {"pooled_features": x["features"].mean((2, 3), keepdim=True)}

    def get_model(self) -> Any:
        """Return what is exported."""
        return self.network


def train(task: Task) -> None:
    """Train, and save the encoder that the library exports."""
    folder = task.out / "lightly_train"
    shutil.rmtree(folder, ignore_errors=True)
    transform = {"image_size": (task.size, task.size), "normalize": {"mean": task.mean, "std": task.std}}
    if task.method == "dino":
        local = round(task.size * 96 / 224)
        transform["local_view"] = {"view_size": (local, local)}
    seconds = clock()
    lightly_train.pretrain(
        out=folder, data=[str(film) for film in task.films], model=Wrapped(task.network()), method=task.method,
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
