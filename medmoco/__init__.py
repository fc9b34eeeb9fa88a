"""medmoco: momentum contrast for medical images. The map, in the order in which data flows:

cli                      arguments in, exit codes out
config                   typed settings from YAML
errors                   what is refused, why
data.phantom             synthetic chests for trying out
data.manifest            CSV rows, labels, patients, splits
data.images              file to grayscale array
data.order               counted randomness, order of samples
data.views               canvas to augmented view
data.loading             workers, batches, normalisation
data.preview             pictures of views, on demand
models.backbones         name to one-channel encoder
models.batch_norm        batch norm in groups
models.moco              encoders, queue, InfoNCE
training.device          device and precision
training.optim           optimisers and learning rate
training.checkpoint      atomic, hashed, resumable files
training.runlog          metrics, TensorBoard, progress
training.engine          the only training loop
training.pretrain        wires a pretraining run
evaluation.features      frozen encoder to features
evaluation.metrics       AUROC with patient-level intervals
evaluation.probes        linear probe and kNN
evaluation.evaluate      wires scoring and its controls
exporting.export         encoder, contract, card, parity
"""

from __future__ import annotations

__version__ = "0.1.0"
