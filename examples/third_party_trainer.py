"""Pretrain inside a trainer of another library, here PyTorch-Ignite.

    pip install pytorch-ignite
    python examples/third_party_trainer.py  # synthetic images
    python examples/third_party_trainer.py --data manifests/mine --root "images/{split}"

The trainer gets medmoco's loader and its method, which is a module whose forward pass
returns the loss. Lightning, Accelerate or a trainer of your own take both in the same way.
"""

from __future__ import annotations

import argparse
import tempfile

import timm
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, TerminateOnNan
from ignite.metrics import RunningAverage

import medmoco

Batch = tuple[torch.Tensor, torch.Tensor]


def make_trainer(method: medmoco.MoCo, optimizer: torch.optim.Optimizer, device: torch.device) -> Engine:
    """Return an engine that trains the method on pairs of views and prints the loss of each epoch."""

    def step(_: Engine, batch: Batch) -> float:
        query_views, key_views = (views.to(device, non_blocking=True) for views in batch)
        loss = method(query_views, key_views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    trainer = Engine(step)
    RunningAverage(output_transform=float).attach(trainer, "loss")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: print(f"epoch {engine.state.epoch}: loss {engine.state.metrics['loss']:.3f}"),
    )
    return trainer


def pretrain(data: str, root: str, *, size: int, batch_size: int, epochs: int, out: str) -> None:
    """Train an encoder on the images of a manifest's training split; write checkpoints of the whole method."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = medmoco.TwoViews(data, root=root, recipe="xray", size=size)
    # A backbone without batch norm, through whose statistics a query could recognise its key.
    backbone = timm.create_model("convnext_atto", in_chans=1, num_classes=0)
    method = medmoco.MoCo(backbone, queue_size=min(4096, len(views))).to(device)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    trainer = make_trainer(method, torch.optim.AdamW(trained, lr=1e-3), device)
    saver = Checkpoint({"method": method}, DiskSaver(out, require_empty=False), n_saved=1)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    trainer.run(views.loader(batch_size), max_epochs=epochs)
    print(f"the last checkpoint is in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="manifest: a folder with train.csv [synthetic images]")
    parser.add_argument("--root", help="folder that the Path column is relative to [DATA/{split}]")
    parser.add_argument("--size", type=int, default=64, help="side of a view in pixels [64]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", default="checkpoints", help="folder for checkpoints [checkpoints]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = given.data or f"{scratch}/phantoms"
        if not given.data:
            medmoco.phantom(data, patients=40, image_size=96)
        root = given.root or f"{data}/{{split}}"
        pretrain(data, root, size=given.size, batch_size=given.batch_size, epochs=given.epochs, out=given.out)
