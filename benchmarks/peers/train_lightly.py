"""MoCo v2 with lightly's modules, with the values of its example.

Source: docs.lightly.ai, MoCo example: SGD with learning rate 0.06, batches of 256, a memory bank of 4,096 keys,
projector 512-512-128, and key momentum rising from 0.996 to 1.
"""

from __future__ import annotations

import copy

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.moco_transform import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.films import Films, Task, clock, read_task


def train(task: Task) -> None:
    """Train, and save the query encoder."""
    encoder = task.network()
    width = encoder.num_features
    query = nn.Sequential(encoder, MoCoProjectionHead(width, 512, 128))
    key = copy.deepcopy(query)
    deactivate_requires_grad(key)
    transform = MoCoV2Transform(input_size=task.size, normalize={"mean": list(task.mean), "std": list(task.std)})
    loader = DataLoader(
        Films(task.films, transform), batch_size=256, shuffle=True, drop_last=True, num_workers=task.workers,
        persistent_workers=task.workers > 0,
    )  # fmt: skip
    criterion = NTXentLoss(memory_bank_size=(4096, 128))
    optimizer = torch.optim.SGD(query.parameters(), lr=task.lr or 0.06)
    seconds, images = clock(), 0
    for epoch in range(task.epochs):
        momentum = cosine_schedule(epoch, task.epochs, 0.996, 1)
        for view, other in loader:
            update_momentum(query, key, m=momentum)
            with torch.no_grad():
                keys = key(other)
            loss = criterion(query(view), keys)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(view)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {images / seconds():.1f} images/s", flush=True)
    task.save(encoder, seconds(), images)


if __name__ == "__main__":
    train(read_task())
