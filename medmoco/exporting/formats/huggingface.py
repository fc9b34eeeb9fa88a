"""Hugging Face: a folder in the layout of its hub, which timm loads from disk or, once uploaded, from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medmoco.exporting.subject import NETWORK_PRECISIONS, Subject, refuse_all_but_timm, save_state

_FOLDER = "huggingface"

_CARD = """\
---
library_name: timm
license: other
license_name: {licence}
tags:
- image-feature-extraction
- medical
---

# {title}

**This is not a medical device.** {images} of {size} x {size} pixels, prepared as `preprocessing.json` of the export
describes: {levels}, {bit_depth} bits, the longer side resized to {canvas_size} pixels,
then the whole image to {size} x {size} regardless of its aspect ratio, and (pixel / {white} - {mean}) / {std}.
`MODEL_CARD.md` of the export describes the origin and the limits of the weights.

```python
{code}
```
"""

refusal = refuse_all_but_timm


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write config.json, model.safetensors and README.md."""
    own = folder / _FOLDER
    own.mkdir()
    config, card = own / "config.json", own / "README.md"
    config.write_text(json.dumps(_config(subject), indent=2) + "\n", encoding="utf-8")
    card.write_text(_readme(subject), encoding="utf-8")
    return [config, save_state(subject.state, own / "model.safetensors"), card]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it; config.json contains everything that timm needs."""
    return {
        "library": "timm",
        "precisions": list(NETWORK_PRECISIONS),
        "load": [
            f'net = timm.create_model("local-dir:{_FOLDER}", pretrained=True)',
            "outputs = net.eval()(images)",
        ],
    }


def _config(subject: Subject) -> dict[str, Any]:
    """Return the content of config.json, with timm's keys.

    Source: timm's models/_hub.py, which reads it; data/config.py for the description of images.
    """
    prepared, build = subject.preprocessing, subject.build
    arguments = dict(build["arguments"])
    classes = arguments.pop("num_classes")
    net: Any = subject.backbone.net
    labels = {"label_names": subject.classifier["labels"]} if subject.classifier else {}
    return {
        "architecture": build["name"],
        "num_classes": classes,
        "num_features": net.num_features,
        **labels,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [subject.backbone.channels, prepared.size, prepared.size],
            "fixed_input_size": subject.backbone.fixed_size is not None,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # in timm: the whole image, whatever its aspect ratio
            "mean": prepared.means,
            "std": prepared.stds,
            "num_classes": classes,
            "first_conv": net.pretrained_cfg.get("first_conv"),
            "classifier": net.pretrained_cfg.get("classifier"),
            "license": subject.licence,
        },
    }


def _readme(subject: Subject) -> str:
    prepared = subject.preprocessing
    what = "encoder" if subject.head is None else "classifier"
    return _CARD.format(
        title=f"{subject.backbone.name}, {what} pretrained with medmoco",
        licence=json.dumps(subject.licence),
        white=2**prepared.bit_depth - 1,
        images=prepared.images[0].upper() + prepared.images[1:],
        levels=prepared.levels,
        code="\n".join(["import timm", "", *describe(subject)["load"]]).replace(f"local-dir:{_FOLDER}", "local-dir:."),
        **{key: getattr(prepared, key) for key in ("size", "bit_depth", "canvas_size", "mean", "std")},
    )
