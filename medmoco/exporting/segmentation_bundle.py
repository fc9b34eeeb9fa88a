"""What is different in the MONAI bundle of a segmentation network: its configuration and its README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmoco.exporting.subject import Subject

_PREPARE = (
    "$lambda item: {**item, 'image': torch.from_numpy((own := @scripts('prepare').prepared(item['file'], @contract))"
    ".image), 'own': own}"
)
_COLLATE = "$lambda items: {'image': items[0]['image'][None], 'file': items[0]['file'], 'own': items[0]['own']}"
_SAVE = (
    "$lambda item: @scripts('prepare').save(@scripts('prepare').to_mask(item['pred'][0].numpy(), item['own']),"
    " @output_dir, @contract, item['file']) and item"
)


def inference_of_masks(subject: Subject, contract: Mapping[str, Any], files: str) -> dict[str, Any]:
    """Return the configuration for `monai.bundle run`, with MONAI's usual names.

    Args:
        subject: A segmentation network.
        contract: How an encoder's bundle prepares images, see `monai_bundle.contract_of`.
        files: Expression for the list of images, dictionaries with the key "file".
    """
    facts, prepared = subject.segmenter, subject.preprocessing
    assert facts is not None
    steps = {name: step for name, step in contract.items() if name != "resize"} | {
        "windows": {"size": [prepared.size] * prepared.dimensions, "overlap": facts["overlap"]},
        "segmenter": {"classes": facts["classes"], "ignore": facts["ignore"]},
    }
    return {
        "imports": ["$import pathlib", "$import pydoc", "$import sys", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        # MONAI finds scripts when it runs a bundle, but not when it verifies one. It takes any expression with the word
        # "import" for a statement.
        "scripts": "$sys.path.insert(1, @bundle_root) or (lambda name: pydoc.locate('scripts.' + name))",
        "model": subject.build,
        "network_def": "$@scripts('network').network(@model)",
        "network": "$torch.nn.Sequential(@network_def, torch.nn.Softmax(1)).to(@device)",
        "contract": steps,
        "preprocessing": {"_target_": "Compose", "transforms": [_PREPARE]},
        "dataset": {"_target_": "Dataset", "data": files, "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0, "collate_fn": _COLLATE,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": steps["windows"]["size"], "sw_batch_size": 4,
            "overlap": facts["overlap"], "mode": "gaussian", "device": "cpu",
        },
        "postprocessing": {"_target_": "Compose", "transforms": [_SAVE]},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "decollate": False,
        },
        "initialize": [
            "$@network_def.load_state_dict(torch.load(@bundle_root + '/models/model.pt', weights_only=True))"
        ],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def metadata_of_masks(subject: Subject) -> tuple[str, str, dict[str, Any]]:
    """Return words for the outputs and the task, and the description of the outputs, for configs/metadata.json."""
    assert subject.segmenter is not None
    prepared, classes = subject.preprocessing, ["background", *subject.segmenter["classes"]]
    outputs: dict[str, Any] = {
        "type": "image", "format": "segmentation", "num_channels": len(classes), "is_patch_data": True,
        "spatial_shape": [prepared.size] * prepared.dimensions, "channel_def": dict(enumerate(classes)),
    }  # fmt: skip
    return f"log-odds of {', '.join(classes)}", f"Segmentation of {', '.join(classes[1:])}", outputs


def readme_of_masks(subject: Subject, packages: Mapping[str, str]) -> str:
    """Return docs/README.md."""
    assert subject.segmenter is not None
    prepared, is_volume = subject.preprocessing, subject.preprocessing.dimensions == 3
    values = {"background": 0, **subject.segmenter["classes"]}
    given = "NIfTI, NRRD or MetaImage file, or the folder of a DICOM series" if is_volume else "DICOM, PNG or JPEG file"
    return f"""\
# {subject.backbone.name} segmenter

**This is not a medical device.** A network that segments {", ".join(list(values)[1:])} in {prepared.images}, in windows
of {prepared.sides}.

```bash
pip install "monai[fire,ignite]" {" ".join(packages)}
python -P -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
    --logging_file configs/logging.conf --dataset_dir IMAGES --output_dir RESULTS
```

Run it in this folder, or pass the folder as `--bundle_root`. Every entry of IMAGES must be a {given}. RESULTS gets a
{"NIfTI" if is_volume else "PNG"} mask of the same name for each, on its grid, with the values
{", ".join(f"{value} ({name})" for name, value in values.items())}.

`scripts/prepare.py` prepares images exactly as for training and brings the masks back to their grids; `contract` in
`configs/inference.json` has its parameters. `scripts/network.py` builds the network, which can be trained further.

## Verify

```bash
python -P -m monai.bundle verify_net_in_out network_def --meta_file configs/metadata.json \\
    --config_file configs/inference.json
```

## Licence

See LICENSE for the configuration and the weights, docs/data_license.txt for the training data.
"""
