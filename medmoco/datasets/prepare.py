"""Make a data set's manifest by its name, for `medmoco prepare` and the scripts in dataset_processing/."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from medmoco.errors import SettingsError
from medmoco.utils.available import available_cores

if TYPE_CHECKING:
    from medmoco.datasets.preparation import PreparedManifest

RADIOGRAPHS = {
    "chexpert": "CheXpert; its valid images, read by experts, are test",
    "kermany_pneumonia": "paediatric pneumonia (Kermany et al. 2018)",
    "mimic_cxr_jpg": "MIMIC-CXR-JPG 2.0.0 or 2.1.0, official split",
    "nih_chest_xray14": "NIH ChestX-ray14, official test set, boxes",
    "padchest": "PadChest, all labels of its reports",
    "rsna_pneumonia": "RSNA pneumonia challenge 2018, boxes",
    "shenzhen_montgomery_tb": "Shenzhen and Montgomery tuberculosis sets",
    "siim_pneumothorax": "SIIM-ACR pneumothorax challenge, boxes around masks",
    "vindr_cxr": "VinDr-CXR, majority of three readers, all boxes",
}
COLLECTIONS = {
    "covid19_image_data": "radiographs of the COVID-19 image data collection",
    "dicom_tree": "any folder of DICOM files, from their headers",
    "image_folder": "any tree of CLASS/FILE or {train,val,test}/CLASS/FILE",
    "medmnist": "a MedMNIST .npz file; writes its images as PNG too",
}
DATASETS = dict(sorted((RADIOGRAPHS | COLLECTIONS).items()))
"""Name of a data set, and of its module -> one line about it."""


def prepare(
    name: str,
    source: Path | str,
    out: Path | str,
    *,
    volumes: bool = False,
    seed: int = 0,
    gzip: bool = False,
    workers: int | None = None,
) -> PreparedManifest:
    """Write the manifest of a public data set, split by patient, with a README.md that documents it.

    Args:
        name: One of the data sets that `medmoco prepare --help` lists.
        source: Folder with the data set's tables and images as its makers publish them; for MedMNIST the .npz file.
        out: New or empty folder for the manifest.
        volumes: Whether each row is a CT, MR or PT series instead of an image; of dicom_tree only.
        seed: Seed of the splits that the makers do not define.
        gzip: Whether to write .csv.gz files.
        workers: Processes that read DICOM headers, if a data set needs them; None is one per CPU core.

    Raises:
        ManifestError: the source lacks a table, or a table is not the published one.
        SettingsError: the name is unknown or has no volumes, the source does not exist, or `out` is not empty.

    Examples:
        >>> import medmoco
        >>> prepared = medmoco.prepare("dicom_tree", "phantoms", "prepared")
        >>> sorted(prepared.counts)
        ['test', 'train', 'val']
    """
    if name not in DATASETS:
        from medmoco.data.manifest.row_filter import did_you_mean  # here, as it loads pandas

        raise SettingsError(
            f"unknown data set {name!r}{did_you_mean(name, list(DATASETS))}\navailable: {', '.join(DATASETS)}"
        )
    if volumes and name != "dicom_tree":
        raise SettingsError(f"--volumes: {name} has no volumes; they need the data set dicom_tree")
    from medmoco.data.manifest.split_files import check_new_folder
    from medmoco.datasets.preparation import write
    from medmoco.datasets.source import Source

    check_new_folder(Path(out))
    if not Path(source).exists():
        raise SettingsError(f"the source {source} does not exist; name the folder that you downloaded the data set to")
    module = import_module(f"medmoco.datasets.{'radiographs' if name in RADIOGRAPHS else 'collections'}.{name}")
    place = Source(Path(source), Path(out), workers or available_cores(), volumes)
    return write(module.ABOUT, module.prepare(place), place, seed=seed, compressed=gzip)
