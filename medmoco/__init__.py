"""Momentum contrast for medical images, from CSV to exported encoder.

The map, in the order in which data flows:

errors.py               what is refused, and why
config/                 YAML to one typed tree
    yaml_text.py        YAML to plain values, and back
    paths.py            ~ and variables in paths
    base.py             what settings are made of
    data.py             files, canvases, views
    training.py         encoder, method, loop
    decoder.py          reconstruction beside the contrast
    evidence.py         scoring, fine-tuning, detection
    tune.py             what a search tries
    run.py              the whole tree, its consistency
    reading.py          YAML and overrides to settings
    describing.py       each value and its source
data/                   CSV row to batch of views
    phantom.py          synthetic chests to try out
    thorax.py           an analytic chest
    solids.py           rays through ellipsoids and tubes
    files.py            hashes, names that last
    tables.py           bounded, reproducible table files
    columns.py          what a column's name means
    csv_file.py         CSV to rows of text
    ids.py              ids that programs have spoiled
    manifest.py         rows, labels, patients, splits
    where.py            conditions on rows
    places.py           files there, inside the root
    sizes.py            pixels of images, from headers
    splits.py           patients to splits and fractions
    split_files.py      split tables and their counts
    headers.py          DICOM headers to table columns
    source.py           a public data set's folder
    preparation.py      public data sets to manifests
    overlap.py          what two splits share
    grey_levels.py      images, their levels, their canvas
    kinds.py            files recognised by their content
    png_jpeg.py         PNG and JPEG, headers and pixels
    tiff.py             TIFF pages, upright, as declared
    bands.py            arrays of numbers to grey levels
    dicom_levels.py     windows, tables, padding, polarity
    dicom.py            DICOM file to one frame
    prepare.py          file to network input, also exported
    limits.py           files too large to be read
    images.py           file to image, or our error
    guarded.py          crashes, hangs cost one item
    fingerprints.py     equal and nearly equal images
    examine.py          facts about every file
    findings.py         what is wrong with rows
    screen.py           findings on one screen
    audit.py            wires check
    progress.py         how far a pass has come
    order.py            counted randomness, sample order
    pairs.py            which images and views meet
    elementary.py       functions every CPU rounds alike
    colours.py          hue, saturation, loss of colour
    noise.py            windows of one Gaussian tile
    warps.py            where views look, one resampling
    views.py            canvas to augmented view
    pack.py             decode-once canvases, found by Path
    pack_shards.py      images to one shard
    pack_writing.py     manifest to pack, resumable
    pack_dask.py        shards on a Dask cluster
    pack_cache.py       pack at a URL, copied
    stopping.py         Ctrl-C and SIGTERM as flag
    emptiness.py        which pixels of views count
    quarantine.py       unusable images, replaced and listed
    workers.py          data workers that die, hang
    loading.py          workers, batches, normalisation
    preview.py          pictures of views, on demand
models/                 encoders and momentum contrast
    state_dicts.py      file to tensors, nothing run
    naming.py           libraries' names for one network
    schemes.py          who writes which checkpoints
    finding.py          encoders in foreign files, recognised
    imports.py          foreign weights, every key explained
    backbones.py        name to encoder of channels
    conv_stem.py        transformers' convolutions instead of patches
    patches.py          features of each patch, unpooled
    importing.py        wires an import
    batch_norm.py       batch norm in groups
    projectors.py       features to embedding to prediction
    decoder.py          embedding back to its view
    moco.py             encoders, queue, InfoNCE
training/               the loop and its surroundings
    launch.py           how processes start, their ranks
    distributed.py      processes exchange, agree, or explain
    device.py           device and precision
    optim.py            optimisers and learning rate
    checkpoint.py       atomic, hashed, resumable files
    runlog.py           metrics, TensorBoard, progress
    engine.py           the only training loop
    mishaps.py          skipped steps, replaced images, listed
    contrast.py         the task: two views contrasted
    run_folder.py       one run, safely, per folder
    status.py           how a run ended, whatever ended it
    pretrain.py         wires a pretraining run
    slurm.py            settings to a cluster job
    bench.py            what holds training up
evaluation/             encoders to evidence
    features.py         frozen encoder to features
    inputs.py           splits, rows, encoders asked for
    leakage.py          test rows already learned from
    shortcuts.py        labels told without the image
    metrics.py          scores with patient-level intervals
    delong.py           AUROCs of independent cases compared
    comparisons.py      p of differences, multiplicity
    operating.py        decisions at a chosen threshold
    calibration.py      scores to probabilities, and agreement
    subgroups.py        scores within groups of patients
    probes.py           linear probe and kNN
    monitor.py          kNN AUROC while training
    table.py            scores as aligned text
    ledger.py           looks at the test split
    study.py            encoders and controls, their features
    scoring.py          answers to scores and differences
    clinical.py         thresholds and calibration from validation
    heads.py            encoder and linear layer joined
    classifier.py       a classifier's folder, its use
    evaluate.py         wires scoring and controls
    targets.py          what fine-tuning learns from
    supervision.py      the task: labels from one view
    selection.py        best epoch, early stopping
    finetune.py         wires a fine-tuning run
    predict.py          probabilities for a manifest's rows
    figures.py          records to figures, inline SVG
    curve.py            scores at growing label shares
    external.py         a frozen classifier on other data
    pictures.py         patients' images, captioned, on demand
    proposals.py        what a search tries next
    winner.py           best trial, luck of choosing
    tune.py             wires a search
    neighbours.py       the most alike images
    projection.py       features on a plane
    twins.py            images changed in one way
    placement.py        ranks of images' changed twins
    reconstruct.py      what a decoder makes of images
    saliency.py         where a classifier looks
detection/              boxes, and what finds them
    readers.py          several readers' boxes joined
    boxes.py            table of boxes, checked
    detectors.py        encoder to torchvision's detector
    learning.py         the task: boxes in views
    matching.py         detections against true boxes
    average_precision.py  COCO's AP, FROC, their draws
    scoring.py          scores, differences, table
    files.py            detections by row, read back
    drawing.py          boxes in pictures, on demand
    detect.py           wires a detection run
reporting/              runs to one offline page
    blocks.py           paragraphs, tables, plots, written numbers
    runs.py             a run's folder, read defensively
    training.py         sections: data, curves, settings
    scores.py           sections: scores, subgroups, ledger
    curves.py           sections: plots of scores
    external.py         section: data from elsewhere
    appendix.py         TRIPOD+AI and CLAIM, filled in
    report.py           wires the page
exporting/              encoder to files others load
    subject.py          encoder, head, how they are fed
    formats/            one module for each format
        safetensors_file.py  plain names, tensors alone
        timm_file.py    the same, read by timm
        torchvision_file.py  state dict under torchvision's names
        detectron2_file.py  ResNets as detection backbones
        huggingface.py  folder that timm loads
        monai_bundle.py folder that MONAI runs
        onnx_file.py    images to outputs, any batch
        program_file.py  the same for PyTorch alone
    scan.py             no names in any byte
    sources.py          run, weights file or classifier
    export.py           files, contract, proof, card
    verify.py           the proof again, anywhere
    contract.py         how to feed the network
    standalone.py       image to input, without medmoco
    card.py             model card
    reload.py           one format, one library
    parity.py           proof by reading back
cli/                    arguments in, exit codes out
    options.py          arguments that commands share
    processes.py        several processes, one speaks
    settings.py         command: config
    data.py             commands: phantom to pack
    training.py         commands: pretrain and its like
    evidence.py         commands: evaluate to report
    use.py              commands: import, export and such
    insight.py          commands: neighbours to saliency
    program.py          table of commands, exit codes
    __main__.py         for python -m
"""

from __future__ import annotations

__version__ = "0.1.0"
