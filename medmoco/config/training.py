"""Settings of the encoder, the method and the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from medmoco.config.base import Count, Float, Fraction, Int, Positive, Settings, Tree

METHODS: dict[str, Tree] = {
    "moco_v1": {"temperature": 0.07, "projector": "linear"},
    "moco_v2": {"temperature": 0.2, "projector": "mlp"},
}
"""Source: He et al. 2020 (arXiv:1911.05722) and Chen et al. 2020 (arXiv:2003.04297)."""


class ModelSettings(Settings):
    """The encoder."""

    backbone: str = "resnet50"
    """A timm model name, monai/NAME for a MONAI network, or moco-v3/vit_small. Source: He et al. 2020."""

    init: Path | None = None
    """Weights file to start from, of medmoco or others (docs/import.md); RGB first layers are summed to gray."""


class MethodSettings(Settings):
    """Momentum contrast. Presets by `name`; any key given here replaces the preset's."""

    name: Literal["moco_v1", "moco_v2"] = "moco_v2"
    """Preset that the other keys of this group start from."""

    queue_size: Count = 65536
    """Negative keys held. Must not exceed the number of training images. Source: He et al. 2020."""

    key_momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    """Share of the key encoder kept at each step. Source: He et al. 2020."""

    temperature: Positive = 0.2
    """Divides the similarities. Source: Chen et al. 2020; v1 has 0.07."""

    projector: Literal["linear", "mlp", "mlp_bn"] = "mlp"
    """Layers between features and embedding; mlp_bn normalises the hidden one, as v3. Source: Chen et al. 2020."""

    embedding_dim: Count = 128
    """Width of the embedding. Source: He et al. 2020."""

    queue_sharded: bool = False
    """Each process keeps a part of the queue instead of all of it: for queues that take much memory."""

    batch_norm_splits: Count = 1
    """Batch norm over this many groups of the batch, keys shuffled between them; at least one for each process.
    Source: facebookresearch/moco issue 47."""


class TrainSettings(Settings):
    """The training loop."""

    epochs: Count = 200
    """Passes over the training split. Source: He et al. 2020."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 256
    """Images per step over all processes. Source: He et al. 2020."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Source: He et al. 2020."""

    lr: Positive = 0.03
    """Peak learning rate, literally: nothing scales it. Source: He et al. 2020."""

    sgd_momentum: Fraction = 0.9
    """Momentum of SGD. Source: He et al. 2020."""

    weight_decay: Annotated[Float, Field(ge=0)] = 1e-4
    """On every parameter for SGD; not on norms and biases for AdamW. Source: He et al. 2020."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Source: Chen et al. 2020."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 0.0
    """Linear rise from 0 to `lr`. Source: He et al. 2020 have none."""

    milestones: tuple[Positive, ...] = (120.0, 160.0)
    """Epochs at which schedule `step` divides the rate by ten. Source: He et al. 2020."""

    accumulation_steps: Count = 1
    """Parts that each process works through its share of the batch in: for little memory."""

    clip_norm: Positive | None = None
    """Largest gradient norm; null leaves gradients alone."""

    precision: Literal["device", "fp32", "bf16", "fp16"] = "device"
    """device: bf16 on GPUs that have it and on CPUs with AMX, else fp16 on GPUs and fp32 on CPUs. Source: measured."""

    device: Literal["any", "cpu", "cuda"] = "any"
    """any: the GPU if there is one."""

    threads: Annotated[Int, Field(ge=0)] = 0
    """CPU threads of the training process; 0 leaves torch's choice."""

    channels_last: bool = True
    """Memory layout. Source: measured, 1.4x for bf16 on a CPU."""

    compile: bool = False
    """torch.compile. Source: measured, no gain on a CPU."""

    max_skipped: Count = 20
    """A step without a finite gradient is skipped; so many of them in a row end the run."""

    hang_seconds: Positive = 600.0
    """A process that does not answer for so long counts as hung; a data worker, after three quarters of it.
    Source: PyTorch waits 10 minutes for NCCL."""

    log_every: Count = 10
    """Steps between records of metrics.jsonl."""

    checkpoint_every: Count = 500
    """Steps between checkpoints; one is also written after the last step and on a stop."""

    knn_every: Annotated[Int, Field(ge=0)] = 5
    """Epochs between kNN AUROCs on the validation split, where labels are named; 0 is never."""
