"""Pretrain in a training loop of your own, with medmoco's views and method.

    python examples/own_loop.py  # synthetic images
    python examples/own_loop.py --data manifests/mine --root "images/{split}"

Everything else is plain PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile

import timm
import torch

import medmoco


def pretrain(data: str, root: str, *, size: int, batch_size: int, epochs: int, out: str) -> None:
    """Train an encoder on the images of a manifest's training split and write its weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = medmoco.TwoViews(data, root=root, recipe="xray", size=size)
    loader = views.loader(batch_size)  # each pass over it is another epoch, with other views in another order

    # A backbone without batch norm, through whose statistics a query could recognise its key.
    backbone = timm.create_model("convnext_atto", in_chans=1, num_classes=0)
    # A longer queue than there are images would hold earlier keys of the query's own image as negatives.
    method = medmoco.MoCo(backbone, queue_size=min(4096, len(views))).to(device)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    for epoch in range(epochs):
        total = 0.0
        for query_views, key_views in loader:
            loss = method(query_views.to(device), key_views.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(loader):.3f}")
    torch.save(backbone.state_dict(), out)
    print(f"the weights are in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="manifest: a folder with train.csv [synthetic images]")
    parser.add_argument("--root", help="folder that the Path column is relative to [DATA/{split}]")
    parser.add_argument("--size", type=int, default=64, help="side of a view in pixels [64]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", default="encoder.pt", help="weights file to write [encoder.pt]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = given.data or f"{scratch}/phantoms"
        if not given.data:
            medmoco.phantom(data, patients=40, image_size=96)
        root = given.root or f"{data}/{{split}}"
        pretrain(data, root, size=given.size, batch_size=given.batch_size, epochs=given.epochs, out=given.out)
