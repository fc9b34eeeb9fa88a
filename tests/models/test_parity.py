"""The published MoCo, step by step, from recorded reference vectors (see the folder's own description)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from medmoco.models.batch_norm import settle_statistics, split_batch_norm
from medmoco.models.moco import MoCo, info_nce
from medmoco.training.distributed import Group
from tests.helpers.together import run_together

FOLDER = Path(os.environ.get("MEDMOCO_PARITY_DIR", Path(__file__).parents[2] / ".." / "shared" / "parity"))
RECORDED = sorted(FOLDER.glob("*.npz")) if FOLDER.is_dir() else []
TOLERANCE = 1e-9


class TinyNet(nn.Module):
    """The network that the vectors were recorded with."""

    def __init__(self, dim: int, mlp: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        last = nn.Linear(16, dim)
        self.fc: nn.Module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), last) if mlp else last

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def load_vectors(file: Path) -> tuple[dict, dict[str, Tensor]]:
    with np.load(file) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return json.loads(file.with_suffix(".json").read_text()), tensors


def build_model(facts: dict, vectors: dict[str, Tensor]) -> MoCo:
    model = MoCo(
        TinyNet(facts["dim"], facts["mlp"]),
        facts["K"],
        embedding_dim=facts["dim"],
        projector=nn.Identity(),  # TinyNet has its own
        key_momentum=facts["m"],
        temperature=facts["T"],
    ).double()
    for ours, theirs in (("query_encoder", "encoder_q"), ("key_encoder", "encoder_k")):
        prefix = f"init/{theirs}."
        state = {key.removeprefix(prefix): value for key, value in vectors.items() if key.startswith(prefix)}
        getattr(model, ours).backbone.load_state_dict(state)
    model.queue.copy_(vectors["init/queue"].T)
    model.pointer.fill_(int(vectors["init/queue_ptr"]))
    split_batch_norm(model, facts["world"])
    return model


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(not RECORDED, reason="no reference vectors: set MEDMOCO_PARITY_DIR to the folder that holds them")
@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_moco__matches_published_implementation(file: Path) -> None:
    facts, vectors = load_vectors(file)
    model = build_model(facts, vectors)
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), facts["lr"], momentum=0.9, weight_decay=1e-4)
    model.train()
    for step in range(facts["steps"]):
        shuffle = vectors["shuffle_index"][step].long()
        model.update_key_encoder()
        keys = model.embed_keys(vectors["im_k"][step].double()[shuffle], shuffle)
        q = functional.normalize(model.query_encoder(vectors["im_q"][step].double()), dim=1)
        positive, negative = model.compare(q, keys)
        # Averaging gradients over processes of equal batches is the gradient of the mean over all rows.
        loss = info_nce(positive, negative)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.enqueue(keys)
        settle_statistics(model)

        logits = torch.cat([positive[:, None], negative], dim=1)
        assert_close(logits, vectors[f"step{step}/logits"].reshape(logits.shape))
        rows = torch.logsumexp(logits, 1) - logits[:, 0]
        assert_close(rows.reshape(facts["world"], -1).mean(1), vectors[f"step{step}/loss_per_rank"].flatten())
        assert_close(loss, vectors[f"step{step}/loss_per_rank"].mean())
        assert_close(model.queue.T, vectors[f"step{step}/queue"])
        assert int(model.pointer) == int(vectors[f"step{step}/queue_ptr"])

    for ours, theirs in (("query_encoder", "encoder_q"), ("key_encoder", "encoder_k")):
        for name, value in getattr(model, ours).backbone.state_dict().items():
            is_statistic = "running" in name or "num_batches" in name
            # Groups average their running statistics; the recording keeps process 0's, equal only for one process.
            if not is_statistic or (facts["world"] == 1 and theirs == "encoder_q"):
                assert_close(value, vectors[f"final/{theirs}.{name}"])


def _from_first(own: Tensor) -> Tensor:
    """The published code broadcasts the running statistics of process 0; ours averages them."""
    dist.broadcast(own, 0)
    return own


def _train_shares(group: Group, file: Path) -> list[str]:
    """Train this process's share; return what differs from the recording."""
    torch.set_num_threads(1)
    facts, vectors = load_vectors(file)
    model = build_model({**facts, "world": 1}, vectors)
    model.gather = group.gather
    encode = group.wrap(model.branches(), torch.device("cpu"))
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), facts["lr"], momentum=0.9, weight_decay=1e-4)
    model.train()
    wrong = []

    def check(what: str, actual: Tensor, expected: Tensor) -> None:
        if not torch.allclose(actual, expected.to(actual.dtype), rtol=0, atol=TOLERANCE):
            wrong.append(f"{what} of process {group.rank}: {(actual - expected).abs().max()}")

    for step in range(facts["steps"]):
        shuffle = vectors["shuffle_index"][step].long()
        part = group.share.of(len(shuffle))
        model.update_key_encoder()
        keys = model.embed_keys(vectors["im_k"][step].double()[shuffle][part], shuffle)
        (q,), _ = encode([vectors["im_q"][step].double()[part]])
        positive, negative = model.compare(q, keys[part])
        loss = info_nce(positive, negative)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.enqueue(keys)
        settle_statistics(model, _from_first)

        logits = torch.cat([positive[:, None], negative], dim=1)
        check(f"logits of step {step}", logits, vectors[f"step{step}/logits"].reshape(len(shuffle), -1)[part])
        check(f"loss of step {step}", loss, vectors[f"step{step}/loss_per_rank"].flatten()[group.rank])
        check(f"queue of step {step}", model.queue.T, vectors[f"step{step}/queue"])
        check(f"pointer of step {step}", model.pointer, vectors[f"step{step}/queue_ptr"])
    for ours, theirs in (("query_encoder", "encoder_q"), ("key_encoder", "encoder_k")):
        for name, value in getattr(model, ours).backbone.state_dict().items():
            if theirs == "encoder_q" or not ("running" in name or "num_batches" in name):
                check(f"{ours}.{name}", value, vectors[f"final/{theirs}.{name}"])
    return wrong


@pytest.mark.skipif(not RECORDED, reason="no reference vectors: set MEDMOCO_PARITY_DIR to the folder that holds them")
@pytest.mark.parametrize("file", [file for file in RECORDED if "world2" in file.stem], ids=lambda file: file.stem)
def test_moco__two_processes_match_two_recorded_processes(file: Path) -> None:
    assert run_together(2, _train_shares, file) == [[], []]
