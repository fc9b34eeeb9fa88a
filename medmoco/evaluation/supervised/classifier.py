"""A trained classifier: calibrated probabilities for images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medmoco.config import ConfigSource, RunSettings, is_run, load
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.features.embedding import Options, Unreadable, compute
from medmoco.evaluation.features.encoder import Encoder, as_html
from medmoco.evaluation.features.encoder_files import Kind, Provenance
from medmoco.evaluation.features.features import extract, fingerprint
from medmoco.evaluation.features.image_sets import Images
from medmoco.evaluation.metrics.calibration import Calibration
from medmoco.evaluation.supervised.classifier_folder import Facts, read_classifier
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.training.device import choose_device
from medmoco.utils.files import PathLike

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Classifier:
    """A trained classifier with everything needed to use it.

    Attributes:
        module: A plain `nn.Module` in eval mode: images (B, C, S, S) -> log-odds of each label (B, L), averaged over
            both mirror images if `preprocessing.mirror` is set.
        encoder: The encoder without the classifier's head.
        facts: The content of classifier.json.
        settings: Settings of the data and the machine; None if no config was given.
        folder: Folder that the classifier was loaded from.

    Examples:
        >>> import medmoco
        >>> classifier = medmoco.load_classifier("runs/phantoms/evaluation/classifier")
        >>> classifier.labels, sorted(classifier.operating_points)
        (('Opacity', 'Interstitial'), ['Interstitial', 'Opacity'])
    """

    module: ClassifierNetwork
    encoder: Encoder
    facts: Facts
    settings: RunSettings | None = None
    folder: Path | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The L labels, in the order of the outputs."""
        return self.facts.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are converted to the module's input."""
        return self.encoder.preprocessing

    @property
    def provenance(self) -> Provenance:
        """How the classifier was trained, and where its encoder comes from."""
        return self.encoder.provenance

    @property
    def operating_points(self) -> dict[str, dict[float, float]]:
        """Thresholds on the module's log-odds, by label and specificity on validation."""
        return {
            label: {point.specificity: point.threshold for point in points}
            for label, points in self.facts.operating_points.items()
        }

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """Calibration of the module's log-odds by label."""
        return {label: Calibration(own.slope, own.intercept) for label, own in self.facts.calibration.items()}

    def predict(
        self,
        images: Images,
        *,
        root: PathLike | None = None,
        unreadable: Unreadable = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Return the calibrated probability of each label; arguments and errors are those of `Encoder.embed`.

        Returns:
            N rows in the order given: `row`, a column for each label, and for unreadable="nan" also `error`.

        Examples:
            >>> import medmoco
            >>> classifier = medmoco.load_classifier("runs/phantoms/evaluation/classifier")
            >>> classifier.predict("phantoms/val").columns.tolist()
            ['row', 'Opacity', 'Interstitial']
        """
        options = Options(root, unreadable, batch_size, device, progress)
        settings = self.settings or self.preprocessing.settings
        found = compute(self.module, self.preprocessing, settings, images, options)
        table = pd.DataFrame({"row": found.rows})
        table[list(self.labels)] = self.probabilities(found.values.astype(np.float64))
        return table.assign(error=found.errors) if unreadable == "nan" else table

    def probabilities(self, scores: Floats) -> Floats:
        """Return calibrated probabilities of the module's log-odds, (N, L) -> (N, L)."""
        fitted = [self.calibrations[label] for label in self.labels]
        return np.stack([own.probabilities(column) for own, column in zip(fitted, scores.T, strict=True)], axis=1)

    def score(self, split: Split, settings: RunSettings) -> Floats:
        """Return the log-odds of every row of a split, (N, L); `settings` are those of the data and the machine.

        Raises:
            CheckpointError: scores are not finite.
            SettingsError, DataError: the GPU or an image cannot be used.
        """
        settings, _ = self.prepared(settings)
        device = choose_device(settings.train)
        scores = extract({"classifier": self.module.to(device)}, split, settings, device).features["classifier"]
        return scores.astype(np.float64)

    def prepared(self, settings: RunSettings) -> tuple[RunSettings, list[str]]:
        """Return the settings with the classifier's preprocessing, and a line for each changed setting."""
        own, changes = self.preprocessing.apply_to(settings)
        backbone = self.module.backbone.name
        if settings.model.backbone != backbone:
            changes.insert(0, f"model.backbone is {backbone}, as in training, not {settings.model.backbone}")
        model = settings.model.model_copy(update={"backbone": backbone})
        return own.model_copy(update={"model": model}), changes

    def __repr__(self) -> str:
        size = self.preprocessing.size
        return (
            f"Classifier({self.facts.trained} {self.module.backbone.name}, {', '.join(self.labels)}, "
            f"{self.preprocessing.images} of {size} x {size} pixels)"
        )

    def _repr_html_(self) -> str:
        return as_html(repr(self), {label: self._describe(label) for label in self.labels})

    def _describe(self, label: str) -> str:
        auroc, points = self.facts.val_auroc[label], self.operating_points[label].items()
        return ", ".join([
            f"AUROC on validation {'undefined' if auroc is None else f'{auroc:.3f}'}",
            f"calibration {self.facts.calibration[label].kind}",
            *(f"threshold {threshold:.3g} for a specificity of {specificity:g}" for specificity, threshold in points),
        ])  # fmt: skip


def load_classifier(folder: PathLike, config: ConfigSource | None = None) -> Classifier:
    """Load a classifier written by `finetune` or `evaluate`.

    Args:
        folder: Classifier folder, such as runs/tuned/classifier.
        config: Settings of the data, needed for names of splits, and of the machine. They do not change the
            preprocessing.

    Raises:
        CheckpointError: it is not a classifier folder, is damaged, or was written by another version.
        SettingsError: the settings are invalid.

    Examples:
        >>> import medmoco
        >>> medmoco.load_classifier("runs/phantoms/evaluation/classifier")
        Classifier(linear probe test_resnet, Opacity, Interstitial, one-channel images of 32 x 32 pixels)
    """
    network, facts = read_classifier(Path(folder))
    settings = None if config is None else load(config)
    kind, step = cast(Kind, facts.encoder.get("kind", "file")), facts.encoder.get("step")
    provenance = Provenance(
        kind,
        step if isinstance(step, int) else None,
        medmoco=facts.medmoco,
        trained=facts.trained,
        weights_sha256=fingerprint(network.backbone),
    )
    encoder = Encoder(network.backbone, facts.preprocessing, provenance, settings, Path(folder))
    return Classifier(network, encoder, facts, settings, Path(folder))


def run_around(folder: Path) -> Path | None:
    """Return the run that contains a classifier folder, as RUN/classifier or RUN/evaluation/classifier."""
    return next((parent for parent in folder.absolute().parents[:2] if is_run(parent)), None)
