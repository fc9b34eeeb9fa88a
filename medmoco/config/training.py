"""Settings of the encoder, the method and the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medmoco.config.base import Count, Float, Fraction, Int, Positive, Seconds, Settings, Tree
from medmoco.config.paths import PathSetting

METHODS: dict[str, Tree] = {
    "moco_v1": {"temperature": 0.07, "projector": "linear"},
    "moco_v2": {"temperature": 0.2, "projector": "mlp"},
    "moco_v3": {
        "temperature": 0.2, "projector": "mlp_3", "hidden_dim": 4096, "embedding_dim": 256, "predictor": True,
        "queue_size": 0, "symmetric": True, "loss_scale": 0.8, "key_momentum": 0.99, "key_momentum_end": 1.0,
        "batch_norm": "joined",
    },
}  # fmt: skip
"""Source: He et al. 2020 (arXiv:1911.05722), Chen et al. 2020 (arXiv:2003.04297) and Chen et al. 2021
(arXiv:2104.02057) with the values of facebookresearch/moco-v3 for transformers; its ResNet-50 has temperature 1,
loss_scale 4, projector mlp_2, and an optimiser that `train` names."""


class ModelSettings(Settings):
    """The encoder."""

    backbone: str = "resnet50"
    """A timm model name, monai/NAME for a MONAI network, or one of moco-v3's transformers: moco-v3/vit_small, and with
    a convolutional stem moco-v3/vit_conv_small. Source: He et al. 2020."""

    init: PathSetting | None = None
    """Weights file to start from, of medmoco or others (docs/import.md); RGB first layers are summed to gray."""

    fixed_patches: bool = False
    """A transformer's patch projection stays as it starts in pretraining. Source: Chen et al. 2021, section 4: more
    stable."""


class MethodSettings(Settings):
    """Momentum contrast. Presets by `name`; any key given here replaces the preset's."""

    name: Literal["moco_v1", "moco_v2", "moco_v3"] = "moco_v2"
    """Preset that the other keys of this group start from."""

    queue_size: Annotated[Int, Field(ge=0)] = 65536
    """Negative keys held; 0 compares with the other keys of the batch instead, as v3. Source: He et al. 2020."""

    negatives: Literal["all", "other_images", "other_patients"] = "all"
    """Which keys a query is pushed away from: all, which allows no more than one of each training image; none of its
    own image; none of its own patient. Source: all, He et al. 2020."""

    symmetric: bool = False
    """Each of the two views is query once and key once. Source: Chen et al. 2021; v1 and v2 are not."""

    key_momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    """Share of the key encoder kept at each step. Source: He et al. 2020."""

    key_momentum_end: Annotated[Float, Field(ge=0, le=1)] | None = None
    """What that share has become at the end of training, along a half cosine; null leaves it as it is.
    Source: Chen et al. 2021 end at 1."""

    temperature: Positive = 0.2
    """Divides the similarities. Source: Chen et al. 2020; v1 has 0.07."""

    loss_scale: Positive = 1.0
    """Multiplies the loss, which is the mean of both directions where it is symmetric. Source: v3 adds the directions
    and multiplies by twice the temperature."""

    projector: Literal["linear", "mlp", "mlp_bn", "mlp_2", "mlp_3"] = "mlp"
    """Layers between features and embedding: v1's, v2's, v2's with a normalised hidden layer, and v3's of 2 (ResNets)
    or 3 (transformers), all normalised. Source: Chen et al. 2020."""

    hidden_dim: Count | None = None
    """Width of the projector's and the predictor's hidden layers; null is that of the features. Source: Chen et al.
    2020; v3 has 4096."""

    embedding_dim: Count = 128
    """Width of the embedding. Source: He et al. 2020."""

    predictor: bool = False
    """Two more layers after the query encoder's projector alone. Source: Chen et al. 2021."""

    batch_norm: Literal["split", "joined"] = "split"
    """split: over batch_norm_splits groups of the batch, keys shuffled between them; joined: over the whole batch, of
    all processes. Source: joined, facebookresearch/moco-v3."""

    batch_norm_splits: Count = 1
    """Batch norm over this many groups of the batch, keys shuffled between them; at least one for each process.
    Source: facebookresearch/moco issue 47."""

    @model_validator(mode="after")
    def _fit_together(self) -> MethodSettings:
        if self.symmetric and self.queue_size and self.negatives == "all":
            raise ValueError(
                "symmetric with a queue puts two keys of each image into it, which more often meet its own queries;\n"
                "set negatives to other_images, which leaves them out, or to other_patients"
            )
        if self.batch_norm == "joined" and self.batch_norm_splits > 1:
            raise ValueError("batch_norm joined has no groups: leave batch_norm_splits at 1")
        if self.key_momentum_end is not None and self.key_momentum_end < self.key_momentum:
            raise ValueError(f"key_momentum_end {self.key_momentum_end:g} is below key_momentum {self.key_momentum:g}")
        return self


class PositiveSettings(Settings):
    """Which image the key of a query is of. Columns are of the manifest; a blank cell neither agrees nor differs."""

    image: Literal["same", "patient"] = "same"
    """The query's own in another view, or another image of its patient. Source: same, He et al. 2020; patient, Vu et
    al. 2021 (arXiv:2102.10663)."""

    agree: tuple[str, ...] = ()
    """Columns in which the patient's other image must be as the query's, such as [StudyID]. Source: Vu et al. 2021
    found that best."""

    differ: tuple[str, ...] = ()
    """Columns in each of which it must be another, such as [Laterality] or [ViewPosition]."""

    probability: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Chance in each epoch that a row with such an image has it as its key's, instead of its own. Source: 1, Vu et al.
    2021."""

    @model_validator(mode="after")
    def _columns_mean_something(self) -> PositiveSettings:
        if self.image == "same" and (self.agree or self.differ or self.probability != 1):
            raise ValueError("agree, differ, probability are about a patient's images; set image=patient or drop them")
        both = set(self.agree) & set(self.differ)
        if both:
            raise ValueError(f"{', '.join(sorted(both))} cannot both agree and differ")
        return self


class TrainSettings(Settings):
    """The training loop."""

    epochs: Count = 200
    """Passes over the training split. Source: He et al. 2020."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 256
    """Images per step over all processes. Source: He et al. 2020."""

    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    """Source: He et al. 2020; v3 trains ResNets with LARS (You et al. 2017, arXiv:1708.03888), transformers with AdamW
    (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    lr: Positive = 0.03
    """Peak learning rate, literally: nothing scales it. Source: He et al. 2020."""

    sgd_momentum: Fraction = 0.9
    """Momentum of SGD and LARS. Source: He et al. 2020."""

    weight_decay: Annotated[Float, Field(ge=0)] = 1e-4
    """On every parameter for SGD; not on norms and biases for AdamW and LARS. Source: He et al. 2020."""

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

    hang_seconds: Seconds = 600.0
    """A process that does not answer for so long counts as hung; a data worker, after three quarters of it.
    Source: PyTorch waits 10 minutes for NCCL."""

    log_every: Count = 10
    """Steps between records of metrics.jsonl."""

    checkpoint_every: Count = 500
    """Steps between checkpoints; one is also written after the last step and on a stop."""

    knn_every: Annotated[Int, Field(ge=0)] = 5
    """Epochs between kNN AUROCs on the validation split, where labels are named; 0 is never."""


class DecoderSettings(Settings):
    """A decoder that reconstructs a query's view from its embedding.

    The loss is contrast x InfoNCE + weight x mean squared error, of normalised pixels.

    Source: grantmerz/moco, for galaxies.
    """

    weight: Annotated[Float, Field(ge=0)] = 0.0
    """Beta, of the squared error; 0 trains no decoder. Source: grantmerz/moco has 50 in the names of its runs."""

    contrast: Annotated[Float, Field(ge=0)] = 1.0
    """Alpha, of the InfoNCE; 0 trains an autoencoder."""

    channels: Count = 256
    """Of the decoder's coarsest layer; each that doubles the side has half of them, 16 at the least.
    Source: a judgement; grantmerz/moco's has 1,024 and takes longer than its encoder."""

    empty: Literal["none", "threshold", "outside", "mask"] = "none"
    """Pixels of empty space, which count less: none; those no brighter than `threshold` on the canvas; those that a
    rotated view shows from beyond the image's edges; those that are black in the image that `mask` names."""

    threshold: Fraction = 0.0
    """Share of white. Source: grantmerz/moco takes pixels of 0 or less."""

    mask: str | None = None
    """Manifest column of the Paths of mask images, each as large as its image; white counts, black is empty."""

    empty_weight: Fraction = 0.0
    """Of a pixel of empty space. Source: grantmerz/moco has 0, or 1e-6."""

    @model_validator(mode="after")
    def _fit_together(self) -> DecoderSettings:
        if not self.weight and not self.contrast:
            raise ValueError("weight and contrast are both 0: nothing would be trained")
        if self.empty != "none" and not self.weight:
            raise ValueError(f"empty {self.empty} weighs what the decoder reconstructs; set weight above 0")
        if (self.empty == "mask") != (self.mask is not None):
            raise ValueError("empty mask and a mask column need each other: set both, or neither")
        return self
