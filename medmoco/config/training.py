"""Settings of the encoder, the contrastive method and the training loop."""

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
(arXiv:2104.02057) with the values of facebookresearch/moco-v3 for transformers; its ResNet-50 uses temperature 1,
loss_scale 4, projector mlp_2, and LARS (`train.optimizer`)."""


class ModelSettings(Settings):
    """The encoder to train."""

    backbone: str = "resnet50"
    """Name of a timm model, monai/NAME for a MONAI network, or a transformer of moco-v3: moco-v3/vit_small, or
    moco-v3/vit_conv_small with a convolutional stem. Source: He et al. 2020."""

    init: PathSetting | None = None
    """Weights file to initialise from, of medmoco or another project (docs/import.md); the first layer of RGB models is
    summed over its channels for gray images."""

    fixed_patches: bool = False
    """Freeze the patch projection of a transformer during pretraining. Source: Chen et al. 2021, section 4, for
    stability."""


class MethodSettings(Settings):
    """Momentum contrast. `name` selects a preset, and every key set here overrides it."""

    name: Literal["moco_v1", "moco_v2", "moco_v3"] = "moco_v2"
    """Preset for the other keys of this group."""

    queue_size: Annotated[Int, Field(ge=0)] = 65536
    """Number of negative keys in the queue; with 0, the other keys of the batch are the negatives, as in v3. Source:
    He et al. 2020."""

    negatives: Literal["all", "other_images", "other_patients"] = "all"
    """Which keys serve as negatives: all (the queue must then be no longer than the training split), only those of
    other images, or only those of other patients. Source: all, He et al. 2020."""

    symmetric: bool = False
    """Use each of the two views once as query and once as key. Source: Chen et al. 2021; v1 and v2 do not."""

    key_momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    """Momentum m of the key encoder: at each step it becomes m * key + (1 - m) * query. Source: He et al. 2020."""

    key_momentum_end: Annotated[Float, Field(ge=0, le=1)] | None = None
    """Value of key_momentum at the end of training, reached along a half cosine; null keeps it constant.
    Source: Chen et al. 2021 end at 1."""

    temperature: Positive = 0.2
    """Temperature by which the similarities are divided. Source: Chen et al. 2020; v1 uses 0.07."""

    loss_scale: Positive = 1.0
    """Factor of the loss; a symmetric loss is the mean of both directions. Source: v3 adds the two directions and
    multiplies by twice the temperature."""

    projector: Literal["linear", "mlp", "mlp_bn", "mlp_2", "mlp_3"] = "mlp"
    """Layers between features and embedding: linear (v1), mlp (v2), mlp_bn (v2 with batch norm in the hidden layer), or
    with batch norm throughout mlp_2 (v3, ResNets) and mlp_3 (v3, transformers). Source: Chen et al. 2020."""

    hidden_dim: Count | None = None
    """Width of the hidden layers of projector and predictor; null uses the width of the features. Source: Chen et al.
    2020; v3 uses 4096."""

    embedding_dim: Count = 128
    """Width of the embedding. Source: He et al. 2020."""

    predictor: bool = False
    """Add a two-layer predictor after the projector of the query encoder. Source: Chen et al. 2021."""

    batch_norm: Literal["split", "joined"] = "split"
    """Batch statistics: split, over batch_norm_splits groups of the batch with keys shuffled between them (ShuffleBN);
    joined, over the whole batch of all processes. Source: joined, facebookresearch/moco-v3."""

    batch_norm_splits: Count = 1
    """Number of groups of the batch for batch norm, at least one per process. Source: facebookresearch/moco issue
    47."""

    @model_validator(mode="after")
    def _fit_together(self) -> MethodSettings:
        if self.symmetric and self.queue_size and self.negatives == "all":
            raise ValueError(
                "symmetric with a queue enqueues two keys per image, which become negatives of their own image;\n"
                "set negatives to other_images or other_patients, which excludes them"
            )
        if self.batch_norm == "joined" and self.batch_norm_splits > 1:
            raise ValueError("batch_norm joined uses no groups: leave batch_norm_splits at 1")
        if self.key_momentum_end is not None and self.key_momentum_end < self.key_momentum:
            raise ValueError(f"key_momentum_end {self.key_momentum_end:g} is below key_momentum {self.key_momentum:g}")
        return self


class PositiveSettings(Settings):
    """Which image provides the key of a query. Columns refer to the manifest; blank cells never match or differ."""

    image: Literal["same", "patient"] = "same"
    """same: another view of the query's image; patient: another image of the same patient. Source: same, He et al.
    2020; patient, Vu et al. 2021 (arXiv:2102.10663)."""

    agree: tuple[str, ...] = ()
    """Columns whose value must be the same for both images, such as [StudyID]. Source: Vu et al. 2021 found it best to
    stay within a study."""

    differ: tuple[str, ...] = ()
    """Columns whose value must differ between the two images, such as [Laterality] or [ViewPosition]."""

    probability: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Probability, per epoch, that a row uses such an image for its key, if there is one. Source: 1, Vu et al. 2021."""

    @model_validator(mode="after")
    def _columns_mean_something(self) -> PositiveSettings:
        if self.image == "same" and (self.agree or self.differ or self.probability != 1):
            raise ValueError("agree, differ and probability need image=patient; set it or drop them")
        both = set(self.agree) & set(self.differ)
        if both:
            raise ValueError(f"{', '.join(sorted(both))} cannot be in both agree and differ")
        return self


class TrainSettings(Settings):
    """The training loop."""

    epochs: Count = 200
    """Number of passes over the training split. Source: He et al. 2020."""

    global_batch_size: Annotated[Int, Field(ge=2)] = 256
    """Images per step, over all processes. Source: He et al. 2020."""

    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    """Optimiser. Source: He et al. 2020 use SGD; v3 trains ResNets with LARS (You et al. 2017, arXiv:1708.03888) and
    transformers with AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    lr: Positive = 0.03
    """Peak learning rate; it is not scaled with the batch size. Source: He et al. 2020."""

    sgd_momentum: Fraction = 0.9
    """Momentum of SGD and LARS. Source: He et al. 2020."""

    weight_decay: Annotated[Float, Field(ge=0)] = 1e-4
    """Weight decay: of all parameters for SGD, not of norms and biases for AdamW and LARS. Source: He et al. 2020."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Schedule of the learning rate. Source: Chen et al. 2020."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 0.0
    """Epochs in which the learning rate rises linearly from 0 to `lr`. Source: He et al. 2020 use none."""

    milestones: tuple[Positive, ...] = (120.0, 160.0)
    """Epochs at which schedule `step` divides the learning rate by ten. Source: He et al. 2020."""

    accumulation_steps: Count = 1
    """Number of parts in which each process computes its share of the batch, to save memory."""

    clip_norm: Positive | None = None
    """Largest norm of the gradient; null disables clipping."""

    precision: Literal["device", "fp32", "bf16", "fp16"] = "device"
    """Numeric precision; device selects bf16 on GPUs that support it and on CPUs with AMX, else fp16 on GPUs and fp32
    on CPUs. Source: measured."""

    device: Literal["any", "cpu", "cuda"] = "any"
    """Device to train on; any uses a GPU if there is one."""

    threads: Annotated[Int, Field(ge=0)] = 0
    """CPU threads of the training process; 0 keeps torch's default."""

    channels_last: bool = True
    """Use the channels-last memory layout. Source: measured, 1.4x faster for bf16 on a CPU."""

    compile: bool = False
    """Compile the model with torch.compile. Source: measured, no gain on a CPU."""

    max_skipped: Count = 20
    """Steps whose gradient is not finite are skipped; this many in a row end the run."""

    hang_seconds: Seconds = 600.0
    """Seconds without a response after which a process counts as hung; a data worker after three quarters of it.
    Source: PyTorch waits 10 minutes for NCCL."""

    log_every: Count = 10
    """Steps between two records in metrics.jsonl."""

    checkpoint_every: Count = 500
    """Steps between two checkpoints; one is also written after the last step and when the run is stopped."""

    knn_every: Annotated[Int, Field(ge=0)] = 5
    """Epochs between two kNN AUROCs on the validation split, if data.labels is set; 0 disables them. The run keeps the
    checkpoint with the best mean over the labels in its folder `best`."""

    patience: Count | None = None
    """Number of kNN scores in a row without a better one after which training stops, before the learning rate has
    decayed; null trains for all epochs. Source: our choice."""

    @model_validator(mode="after")
    def _patience_counts_scores(self) -> TrainSettings:
        if self.patience and not self.knn_every:
            raise ValueError(
                f"patience {self.patience} counts kNN scores, but knn_every is 0; set knn_every, or patience to null"
            )
        return self


class DecoderSettings(Settings):
    """A decoder that reconstructs the query's view from its embedding.

    The loss is contrast * InfoNCE + weight * mean squared error of the normalised pixels.

    Source: grantmerz/moco, for images of galaxies.
    """

    weight: Annotated[Float, Field(ge=0)] = 0.0
    """Weight of the squared error (beta); with 0, no decoder is trained. Source: grantmerz/moco names runs with 50."""

    contrast: Annotated[Float, Field(ge=0)] = 1.0
    """Weight of InfoNCE (alpha); with 0, an autoencoder is trained."""

    channels: Count = 256
    """Channels of the decoder's coarsest layer; each layer that doubles the side has half as many, at least 16.
    Source: our choice; grantmerz/moco uses 1,024, which takes longer than its encoder."""

    empty: Literal["none", "threshold", "outside", "mask"] = "none"
    """Which pixels are empty space and count less: none; those up to `threshold` on the canvas; those outside the
    image's edges in a rotated view; or those that are black in a mask image (see `mask`)."""

    threshold: Fraction = 0.0
    """Brightest value of empty space, as a fraction of white. Source: grantmerz/moco uses pixels of 0 or less."""

    mask: str | None = None
    """Manifest column with the paths of mask images, each the size of its image; white counts, black is empty."""

    empty_weight: Fraction = 0.0
    """Weight of a pixel of empty space. Source: grantmerz/moco uses 0 or 1e-6."""

    @model_validator(mode="after")
    def _fit_together(self) -> DecoderSettings:
        if not self.weight and not self.contrast:
            raise ValueError("weight and contrast are both 0, so nothing would be trained")
        if self.empty != "none" and not self.weight:
            raise ValueError(f"empty {self.empty} needs a decoder; set weight above 0")
        if (self.empty == "mask") != (self.mask is not None):
            raise ValueError("empty=mask needs a mask column and vice versa; set both or neither")
        return self
