"""nnU-Net: a folder with pretrained weights for its residual encoder U-Net, and the plans that they need.

The arrays of nnU-Net's readers have the axes Z, Y, X, ours X, Y, Z; so the axes of all kernels are reversed.

Source: nnU-Net 2.8.1, run/load_pretrained_weights.py, which demands a tensor for every name but those of segmentation
layers; utilities/plans_handling/plans_handler.py; Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.exporting.reload import imported
from medmoco.exporting.subject import Subject
from medmoco.models.networks.volumes import TO_IMPORT

FOLDER = "nnunet"
CONFIGURATION, PLANS = "3d_medmoco", "medmocoPlans"
"""Names in nnU-Net of the configuration and the plans."""

_CHECKPOINT = "checkpoint.pth"
_UNET = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
_SEGMENTATION = ".seg_layers."  # nnU-Net creates these for the classes of the data set

_README = """\
# Pretrained weights for nnU-Net

**This is not a medical device.** `{checkpoint}` holds the weights of {name}, pretrained by momentum contrast, as the
encoder of nnU-Net's residual encoder U-Net; its decoder is randomly initialised. `plans.json` holds what differs from
nnU-Net's own plans: architecture, patch size, spacing, normalisation and orientation.

Plan your data set ID as usual, then merge the plans (Python):

```bash
nnUNetv2_plan_and_preprocess -d ID --no_pp -pl nnUNetPlannerResEncM
```

```python
import json, os
from pathlib import Path

folder = Path(os.environ["nnUNet_preprocessed"], "DatasetID_NAME")
plans = json.loads((folder / "nnUNetResEncUNetMPlans.json").read_text())
own = json.loads(Path("plans.json").read_text())
plans["configurations"] |= own.pop("configurations")
(folder / "{plans}.json").write_text(json.dumps(plans | own, indent=4))
```

```bash
nnUNetv2_preprocess -d ID -plans_name {plans} -c {configuration}
nnUNetv2_train ID {configuration} FOLD -p {plans} -pretrained_weights {checkpoint}
```

- nnU-Net must read NIfTI files with `NibabelIOWithReorient`, as the plans say: its other readers ignore the
  orientation, so that the encoder would see patients from another side.
- {normalisation}
- nnU-Net neither crops to the body nor resamples as in training: it interpolates with splines. What an encoder must see
  to give the features of medmoco, `prepare.py` of the export makes.
- `batch_size` is that of a small GPU; raise it in the plans if there is room.
- nnU-Net opens checkpoints with pickle. This one contains tensors only, as
  `torch.load("{checkpoint}", weights_only=True)` shows.
"""
_AS_IN_TRAINING = (
    "`CTNormalization` with the given numbers clips to the window and normalises exactly as in training, except that\n"
    "  medmoco rounds to {bits} bits."
)
_Z_SCORE = (
    "`ZScoreNormalization` is the closest that nnU-Net has; in training, percentiles of the body became black and\n"
    "  white. Train long enough to adapt to it."
)


def refusal(subject: Subject) -> str | None:
    """nnU-Net has its own encoders only, and no classifiers; segmentation layers it makes anew."""
    if subject.segmenter:
        return "nnU-Net trains its own segmentation layers; export the encoder of the pretraining run"
    if not subject.backbone.name.startswith("nnunet/"):
        return f"{subject.backbone.name} is not an encoder of nnU-Net; those are nnunet/resenc and its smaller variants"
    return None


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write checkpoint, plans and README.md."""
    own = folder / FOLDER
    own.mkdir()
    plans = plans_of(subject)
    torch.save({"network_weights": _weights(subject, plans)}, own / _CHECKPOINT)
    (own / "plans.json").write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")
    (own / "README.md").write_text(_readme(subject), encoding="utf-8")
    return [own / name for name in (_CHECKPOINT, "plans.json", "README.md")]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load the encoder with the library of nnU-Net's networks."""
    return {
        "library": "dynamic_network_architectures",
        "precisions": ["float32"],
        "configuration": CONFIGURATION,
        "load": [
            f"# nnUNetv2_train ... -pretrained_weights {FOLDER}/{_CHECKPOINT}, see {FOLDER}/README.md; or:",
            "from nnunetv2.utilities.get_network_from_plans import get_network_from_plans",
            f'build = json.load(open("{FOLDER}/plans.json"))["configurations"]["{CONFIGURATION}"]["architecture"]',
            "net = get_network_from_plans(*build.values(), input_channels=1, output_channels=CLASSES)",
            f'weights = torch.load("{FOLDER}/{_CHECKPOINT}", weights_only=True)["network_weights"]',
            "net.load_state_dict(weights, strict=False)  # without segmentation layers",
            "features = net.eval().encoder(images.permute(0, 1, 4, 3, 2))[-1].mean((2, 3, 4))",
        ],
    }


def plans_of(subject: Subject) -> dict[str, Any]:
    """Return what replaces entries of nnU-Net's own plans; axes are Z, Y, X."""
    prepared, build = subject.preprocessing, subject.build
    arguments = {key: value for key, value in build["arguments"].items() if key != "input_channels"}
    stages = arguments["n_stages"]
    configuration: dict[str, Any] = {
        "inherits_from": "3d_fullres",
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "batch_size": 2,
        "patch_size": [_multiple(prepared.size, 2 ** (stages - 1))] * 3,
        **({"spacing": list(prepared.spacing[::-1])} if prepared.spacing else {}),
        "normalization_schemes": ["CTNormalization" if isinstance(prepared.window, tuple) else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": _UNET,
            "arch_kwargs": {**arguments, "n_conv_per_stage_decoder": [1] * (stages - 1)},
            "_kw_requires_import": list(TO_IMPORT),
        },
    }
    return {
        "plans_name": PLANS,
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        **_intensities(prepared),
        "configurations": {CONFIGURATION: configuration},
    }


def _multiple(size: int, step: int) -> int:
    return -(-size // step) * step


def _intensities(prepared: Preprocessing) -> dict[str, Any]:
    """Return the numbers with which CTNormalization computes what a window and mean and std do."""
    if not isinstance(prepared.window, tuple):
        return {}
    (centre, width), (mean,), (std,) = prepared.window, prepared.means, prepared.stds
    low, high = centre - width / 2, centre + width / 2
    middle = low + mean * width
    properties = {
        "percentile_00_5": low, "percentile_99_5": high, "min": low, "max": high, "mean": middle, "median": middle,
        "std": std * width,
    }  # fmt: skip
    return {"foreground_intensity_properties_per_channel": {"0": properties}}


def _weights(subject: Subject, plans: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the whole network, without segmentation layers; tensors with two names stay one."""
    state = _network(plans, subject).state_dict()
    ours = {f"encoder.{name}": value for name, value in subject.state.items()}
    ours |= {f"decoder.{name}": value for name, value in ours.items()}  # the decoder holds the encoder, too
    known: dict[int, Tensor] = {}
    return {
        name: known.setdefault(value.data_ptr(), reversed_axes(value) if name in ours else value.detach().clone())
        for name, value in (state | ours).items()
        if _SEGMENTATION not in name
    }


def _network(plans: dict[str, Any], subject: Subject) -> nn.Module:
    """Return the U-Net as nnU-Net initialises it, from a fixed seed."""
    build = plans["configurations"][CONFIGURATION]["architecture"]
    given = build["arch_kwargs"]
    classes = {key: imported(given[key]) for key in build["_kw_requires_import"] if given[key]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        channels = subject.backbone.channels
        unet: Any = imported(_UNET)(input_channels=channels, num_classes=2, **{**given, **classes})
        unet.apply(unet.initialize)
    network: nn.Module = unet
    return network


def reversed_axes(value: Tensor) -> Tensor:
    """Return the kernels of a convolution (O, I, X, Y, Z) as (O, I, Z, Y, X); other tensors as they are."""
    plain = value.detach().cpu()
    return (plain.permute(0, 1, 4, 3, 2) if plain.ndim == 5 else plain).clone(memory_format=torch.contiguous_format)


def _readme(subject: Subject) -> str:
    prepared = subject.preprocessing
    in_hu = isinstance(prepared.window, tuple)
    return _README.format(
        name=subject.backbone.name,
        checkpoint=_CHECKPOINT,
        plans=PLANS,
        configuration=CONFIGURATION,
        normalisation=_AS_IN_TRAINING.format(bits=prepared.bit_depth) if in_hu else _Z_SCORE,
    )
