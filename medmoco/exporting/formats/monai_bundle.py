"""MONAI bundle: a folder that `python -m monai.bundle run` applies to a folder of images or volumes, without medmoco.

Source: MONAI Bundle Specification, https://docs.monai.io/en/latest/mb_specification.html.
"""

from __future__ import annotations

import csv
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pydicom
import timm
import torch

from medmoco import __version__
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.exporting.contract import first_step
from medmoco.exporting.segmentation_bundle import inference_of_masks, metadata_of_masks, readme_of_masks
from medmoco.exporting.standalone import network_source, standalone_source
from medmoco.exporting.subject import Subject, refusal_by_name, refuse_other_heads
from medmoco.exporting.volume_contract import packages_of_volumes, steps_read
from medmoco.models.interop.state_dicts import plain_tensors

FOLDER = "monai_bundle"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Schema of metadata.json, the newest that MONAI names; its verify_metadata downloads it from there."""

_NOT_STATED = "not stated"

_IMAGES = (
    "$[{'image': str(file), 'file': str(file)} for file in sorted(pathlib.Path(@dataset_dir).rglob('*'))"
    " if file.is_file()]"
)
_VOLUMES = (  # a folder is a DICOM series
    "$[{'image': str(file), 'file': str(file)} for file in sorted(pathlib.Path(@dataset_dir).iterdir())"
    " if not file.name.startswith('.')]"
)
_MEAN_OF_WINDOWS = (
    "$lambda volumes, network, *_, **__: torch.stack([torch.cat([network(some) for some in windows.split(4)]).mean(0)"
    " for windows in volumes])"
)


def refusal(subject: Subject) -> str | None:
    """A bundle can hold every network that has a name, except with a head of patches or stages."""
    return None if subject.segmenter else refusal_by_name(subject) or refuse_other_heads(subject)


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write the bundle's folder."""
    root = folder / FOLDER
    for name in ("configs", "docs", "models", "scripts"):
        (root / name).mkdir(parents=True)
    torch.save(plain_tensors(subject.state), root / "models/model.pt")
    masks = subject.segmenter is not None
    texts = {
        "LICENSE": _LICENCE.format(licence=subject.licence),
        "configs/inference.json": _json(
            inference_of_masks(subject, contract_of(subject), _files_in(subject)) if masks else inference(subject)
        ),
        "configs/logging.conf": _LOGGING,
        "configs/metadata.json": _json(metadata(subject)),
        "docs/README.md": readme_of_masks(subject, _packages(subject)) if masks else _readme(subject),
        "docs/data_license.txt": f"Licence of the training data: {_NOT_STATED}\n",
        "scripts/__init__.py": "",
        "scripts/prepare.py": standalone_source(subject.preprocessing.dimensions, masks=masks),
        **({"scripts/network.py": network_source()} if masks else {}),
    }
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    return [root / "models/model.pt", *(root / name for name in texts)]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load the network of the bundle."""
    return {
        "library": "monai",
        "precisions": ["float32"],
        "load": [
            "parser = monai.bundle.ConfigParser()",
            f'parser.read_config("{FOLDER}/configs/inference.json")',
            'net = parser.get_parsed_content("network_def")',
            f'net.load_state_dict(torch.load("{FOLDER}/models/model.pt", weights_only=True))',
            "probabilities = net.eval()(images).softmax(1)" if subject.segmenter else "outputs = net.eval()(images)",
        ],
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _labels(subject: Subject) -> list[str] | None:
    return None if subject.classifier is None else list(subject.classifier["labels"])


def _width(subject: Subject) -> int:
    return subject.backbone.feature_dim if subject.head is None else subject.head.out_features


# ---- configs/inference.json ----


def inference(subject: Subject) -> dict[str, Any]:
    """Return the configuration for `monai.bundle run`, with MONAI's usual names."""
    labels, is_volume = _labels(subject), subject.preprocessing.dimensions == 3
    prepare = "scripts.prepare.volume" if is_volume else "scripts.prepare.image"
    called = {"_target_": prepare, "_mode_": "callable", "contract": "@contract"}
    plain, network_def = _network(subject)
    rows = io.StringIO()
    csv.writer(rows).writerow(["file", *(labels or (f"feature_{number}" for number in range(_width(subject))))])
    return {
        "imports": ["$import pathlib", "$import torch", "$import monai"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "output_name": "features.csv" if labels is None else "probabilities.csv",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        **plain,
        "network_def": network_def,
        "network": "$@network_def.to(@device)",
        "contract": contract_of(subject),
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Lambdad", "keys": "image", "func": called, "track_meta": False}],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": _files_in(subject),
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1 if is_volume else 16, "shuffle": False,
            "num_workers": 0,
        },
        "inferer": _inferer(subject),
        **_postprocessing(subject),
        "header": rows.getvalue().strip(),
        "handlers": [
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "filename": "@output_name",
                "overwrite": False,
                "batch_transform": "$lambda batch: [{'filename_or_obj': item['file']} for item in batch]",
                "output_transform": "$monai.handlers.from_engine('pred')",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": [
            "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', weights_only=True))",
            "$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)",
            "$pathlib.Path(@output_dir, @output_name).write_text(@header + '\\n')",
        ],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _files_in(subject: Subject) -> str:
    return _VOLUMES if subject.preprocessing.dimensions == 3 else _IMAGES


def _network(subject: Subject) -> tuple[dict[str, Any], dict[str, Any] | str]:
    """Return the entries that the network's definition refers to, and the definition."""
    build = subject.build
    if build["library"] == "timm":
        return {}, {"_target_": build["function"], "model_name": build["name"], **build["arguments"]}
    classes = {key: f"${build['arguments'][key]}" for key in build.get("classes", ())}
    definition = {"_target_": build["function"], **build["arguments"], **classes}
    if build.get("features", "outputs") != "outputs":
        hook = f"lambda net, images, outputs: {build['features']}"
        return {"plain_network": definition}, f"$@plain_network.register_forward_hook({hook}) and @plain_network"
    if not build["replaced_by_identity"]:
        return {}, definition
    dropped = f"@plain_network.set_submodule('{build['replaced_by_identity']}', torch.nn.Identity())"
    return {"plain_network": definition}, f"${dropped} or @plain_network"  # set_submodule returns None


def contract_of(subject: Subject) -> dict[str, Any]:
    """Return the part of preprocessing.json that scripts/prepare.py reads."""
    prepared = subject.preprocessing
    normalise = {"mean": prepared.mean, "std": prepared.std}
    if prepared.dimensions == 3:
        return {**steps_read(prepared), "normalise": normalise}
    read = ("window",) if isinstance(prepared.channels, str) else ("channels", "scale", "ranges")
    levels = {name: {key: step[key] for key in read} for name, step in first_step(prepared).items()}
    return {
        **levels,
        "canvas": {"longer_side": prepared.canvas_size, "white": 2**prepared.bit_depth - 1},
        "resize": {"height": prepared.size, "width": prepared.size},
        "normalise": normalise,
    }


def _channels(prepared: Preprocessing) -> dict[str, str]:
    if isinstance(prepared.channels, int):
        return {str(number): f"band {number + 1}" for number in range(prepared.channels)}
    gray = "gray level" if prepared.dimensions == 3 else "gray level, dense tissue bright"
    names = ("red", "green", "blue") if prepared.channels == "rgb" else (gray,)
    return {str(number): name for number, name in enumerate(names)}


def _inferer(subject: Subject) -> dict[str, Any] | str:
    if subject.preprocessing.dimensions == 3 and subject.preprocessing.volumes == "sliding":
        return _MEAN_OF_WINDOWS
    if subject.head is None or not subject.preprocessing.mirror:
        return {"_target_": "SimpleInferer"}
    # The head is linear: the mean of logits is the logit of mean features.
    return "$lambda images, network, *_, **__: (network(images) + network(images.flip(-1))) / 2"


def _postprocessing(subject: Subject) -> dict[str, Any]:
    """Return transforms from one image's logits to calibrated probabilities; features are not transformed."""
    transforms: list[dict[str, Any]] = []
    facts = subject.classifier
    if facts is None:
        return {"postprocessing": {"_target_": "Compose", "transforms": transforms}}
    if facts["exclusive"]:  # log-odds of each label against all others
        others = "x.expand(len(x), -1).masked_fill(torch.eye(len(x), dtype=bool, device=x.device), -torch.inf)"
        transforms.append(_on_pred(f"$lambda x: x - {others}.logsumexp(1)"))
    lines = [facts["calibration"][label] for label in facts["labels"]]
    slopes, intercepts = ([line[name] for line in lines] for name in ("slope", "intercept"))
    calibrated = "x * x.new_tensor(@calibration#slopes) + x.new_tensor(@calibration#intercepts)"
    transforms.append(_on_pred(f"$lambda x: torch.sigmoid({calibrated})"))
    return {
        "calibration": {"slopes": slopes, "intercepts": intercepts},
        "postprocessing": {"_target_": "Compose", "transforms": transforms},
    }


def _on_pred(function: str) -> dict[str, Any]:
    return {"_target_": "Lambdad", "keys": "pred", "func": function, "track_meta": False}


# ---- configs/metadata.json ----


def metadata(subject: Subject) -> dict[str, Any]:
    """Return the metadata that the specification requires; what only the author knows is "not stated"."""
    labels, prepared, name = _labels(subject), subject.preprocessing, subject.backbone.name
    outputs = f"{_width(subject)} features" if labels is None else f"log-odds of {', '.join(labels)}"
    task = f"Features of medical {prepared.images}" if labels is None else f"Probabilities of {', '.join(labels)}"
    pred: dict[str, Any] = {
        "type": "tuples", "format": "latent", "num_channels": _width(subject), "spatial_shape": [], "dtype": "float32",
        "value_range": [], "is_patch_data": False, "channel_def": {},
    }  # fmt: skip
    if subject.segmenter:
        outputs, task, own = metadata_of_masks(subject)
        pred |= own
    images = {
        "type": "image", "format": "magnitude", "modality": "n/a", "num_channels": subject.backbone.channels,
        "spatial_shape": [prepared.size] * prepared.dimensions, "dtype": "float32",
        "value_range": [
            min(-mean / std for mean, std in zip(prepared.means, prepared.stds, strict=True)),
            max((1 - mean) / std for mean, std in zip(prepared.means, prepared.stds, strict=True)),
        ],
        "is_patch_data": subject.segmenter is not None, "channel_def": _channels(prepared),
    }  # fmt: skip
    data_format: dict[str, Any] = {"inputs": {"image": images}, "outputs": {"pred": pred}}
    if labels is not None:
        pred |= {"type": "probabilities", "format": "classes", "channel_def": dict(enumerate(labels))}
        calibrated = pred | {"value_range": [0, 1]}
        data_format["post_processed_outputs"] = {"pred": calibrated}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medmoco {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {**_packages(subject), "pytorch-ignite": "0.5.0", "fire": "0.6.0"},
        "name": f"{name} {subject.stem}",
        "task": task,
        "description": f"{name}, pretrained by momentum contrast on unlabelled {prepared.images}: {prepared.sides} "
        f"to {outputs}",
        "authors": _NOT_STATED,
        "copyright": _NOT_STATED,
        "data_source": _NOT_STATED,
        "data_type": _files(prepared) + (" files, DICOM series" if prepared.dimensions == 3 else ""),
        "image_classes": f"{prepared.images}, {prepared.levels}, prepared by scripts/prepare.py",
        "pred_classes": outputs,
        "intended_use": "Research. This is not a medical device.",
        "references": [
            "He et al. 2020, Momentum contrast for unsupervised visual representation learning, arXiv:1911.05722"
        ],
        "network_data_format": data_format,
    }


def _packages(subject: Subject) -> dict[str, str]:
    """Return the versions of what the network and scripts/prepare.py import, besides MONAI, PyTorch and NumPy."""
    if subject.preprocessing.dimensions == 3:
        return packages_of_volumes(subject.backbone.name)
    return {
        "timm": timm.__version__, "pydicom": pydicom.__version__, "pillow": PIL.__version__,
        "opencv-python-headless": cv2.__version__,
    }  # fmt: skip


# ---- texts ----

_LICENCE = """\
Weights (models/): {licence}
Configuration and scripts (configs/, scripts/): Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0
"""

_LOGGING = """\
[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stderr,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""


def _files(prepared: Preprocessing) -> str:
    if prepared.dimensions == 3:
        return "NIfTI, NRRD or MetaImage"
    return "DICOM, PNG or JPEG" if isinstance(prepared.channels, str) else ".npy"


def _readme(subject: Subject) -> str:
    labels, prepared = _labels(subject), subject.preprocessing
    given = "features" if labels is None else "calibrated probabilities"
    if prepared.dimensions == 3:
        read = f"Every entry of IMAGES must be a {_files(prepared)} file, or the\nfolder of a DICOM series."
        why = "they neither\nfind the body nor average over the extent of larger voxels"
    else:
        read = f"Every file in IMAGES, at any depth, must be\n{_files(prepared)}; only the first frame is read."
        why = "they apply neither\nthe window nor the polarity of a DICOM file"
    read += " The CSV in RESULTS has the name of each file and its"
    kind = "volumes" if prepared.dimensions == 3 else "images"
    return f"""\
# {subject.backbone.name} {subject.stem}

**This is not a medical device.** A network for {prepared.images} of {prepared.sides},
pretrained by momentum contrast, with the outputs
{_width(subject)} {"features" if labels is None else f"log-odds: {', '.join(labels)}"}.

```bash
pip install "monai[fire,ignite]" {" ".join(_packages(subject))}
python -P -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
    --logging_file configs/logging.conf --dataset_dir IMAGES --output_dir RESULTS
```

Run it in this folder, or pass the folder as `--bundle_root`. {read}
{given}. Compressed DICOM needs pydicom's decoders (`pip install pylibjpeg[all] pyjpegls python-gdcm`).

`scripts/prepare.py` prepares {kind} exactly as for training: `preprocessing` in `configs/inference.json` calls it, and
`contract` there has its parameters. MONAI's own readers and transforms cannot replace it, because {why}.

## Verify

```bash
python -P -m monai.bundle verify_net_in_out network_def --meta_file configs/metadata.json \\
    --config_file configs/inference.json
python -P -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath schema.json
```

The second command downloads MONAI's schema to schema.json unless that file exists. Without internet access, copy it
from <{SCHEMA}>.

## Licence

See LICENSE for the configuration and the weights, docs/data_license.txt for the training data.
"""
