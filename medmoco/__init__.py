"""Momentum contrast for medical images: from a CSV of unlabelled images to an encoder, its evaluation and its export.

    import medmoco
    run = medmoco.pretrain("cxr.yaml")                                 # or medmoco.Run("runs/cxr")
    features = run.encoder.embed(["a.dcm", "b.png"])                   # (N, F) float32
    evaluation = medmoco.evaluate("cxr.yaml", {"ours": run})           # AUROC with intervals, next to controls
    evaluation.to_frame(), evaluation.plot_curve()
    medmoco.export(run, "export")

`dir(medmoco)` lists all names; each is imported when it is first used. `__init__.pyi` says where it is defined.

The subpackages, in the order in which data flows; the first line of each module says what it holds:

errors.py           what is refused, and why
config/             YAML to one typed tree of settings
utils/              files, tables, signals, progress, counted randomness
    jobs/           long jobs on files, resumable and on clusters
data/               CSV row to batch of views
    manifest/       rows, labels, patients, splits; `tables/` reads tables as people have them
    image_io/       image files to grey levels; `formats/` has one module for each
    volume_io/      CT and MR volumes to the patient's axes, and to canvases
    augment/        canvas to augmented view
    pack/           canvases decoded once
    loading/        views to batches: order, workers, unusable images
    quality/        what `medmoco check` finds
datasets/           public data sets and `phantoms/` to manifests
    radiographs/    published sets of chest radiographs
    collections/    MedMNIST and COVID-19; class folders, DICOM trees
models/             encoders and momentum contrast
    networks/       networks for volumes; convolutional stem
    interop/        other projects' checkpoints
training/           the loop, distributed training, checkpoints, run folders
plotting/           figures and pictures
evaluation/         encoders to evidence
    metrics/        AUROC and others with patient-level intervals
    features/       frozen encoder to features; linear probe and kNN
    leakage/        test rows that training has seen; the ledger of test evaluations
    scoring/        scores and differences of encoders and controls
    supervised/     classifiers: fine-tuning, prediction, external validation
starting/           folder of images to manifest and settings
    health/         what `medmoco doctor` checks
inspection/         neighbours, projection, retrieval, saliency, reconstruction
tuning/             hyperparameter search
detection/          boxes
segmentation/       classes of pixels and voxels, with few masks
    masks/          cells of a manifest to class numbers, and class numbers to files
    annotated/      canvases with class numbers, and training crops
    scores/         predicted and true masks to metrics
reporting/          runs to one offline page
    trained/        runs of detection and segmentation
exporting/          encoder to files that other software loads
    formats/        one module for each format
api/                public functions that join several subpackages; `__init__.pyi` lists all public names
cli/                arguments in, exit codes out
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
