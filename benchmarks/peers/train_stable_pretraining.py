"""SimCLR with stable-pretraining, with the values of the complete example in its README.

Source: README of stable-pretraining: LARS with learning rate 5 and weight decay 1e-6, linear warm-up and cosine decay,
batches of 256, temperature 0.5, projector 2048-2048-256 with batch norm, and its two pipelines of transforms.
"""

from __future__ import annotations

import lightning
import stable_pretraining as spt
from stable_pretraining import forward
from stable_pretraining.data import transforms
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.films import Films, Task, clock, read_task


def train(task: Task) -> None:
    """Train, and save the encoder."""
    encoder = task.network()
    projector = nn.Sequential(
        nn.Linear(encoder.num_features, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True),
        nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True), nn.Linear(2048, 256),
    )  # fmt: skip
    views = transforms.MultiViewTransform([_view(task, 0.2, []), _view(task, 0.08, [_solarise()])])
    loader = DataLoader(
        Films(task.films, lambda film: views({"image": film})), batch_size=256, shuffle=True, drop_last=True,
        num_workers=task.workers, persistent_workers=task.workers > 0,
    )  # fmt: skip
    module = spt.Module(
        backbone=encoder, projector=projector, forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
        optim={
            "optimizer": {"type": "LARS", "lr": task.lr or 5, "weight_decay": 1e-6},
            "scheduler": {"type": "LinearWarmupCosineAnnealing"},
            "interval": "step",  # by epoch, as in the README, so short a run would end at the full rate
        },
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=task.epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=task.out,
    )  # fmt: skip
    seconds = clock()
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader), seed=task.seed)()
    task.save(encoder, seconds(), task.epochs * len(loader) * 256)


def _view(task: Task, least: float, more: list[object]) -> transforms.Compose:
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((task.size, task.size), scale=(least, 1.0)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
        transforms.RandomGrayscale(p=0.2),
        *more,
        transforms.ToImage(mean=list(task.mean), std=list(task.std)),
    )


def _solarise() -> object:
    return transforms.RandomSolarize(threshold=0.5, p=0.2)


if __name__ == "__main__":
    train(read_task())
