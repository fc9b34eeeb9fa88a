"""Run an exported file with only its format's own library and NumPy, as its users do.

    python -P reload.py FORMAT PATH PREPROCESSING_JSON < images.npy > outputs.npz

The script does not import medmoco; everything it knows about the network comes from the two files. Images and outputs
pass through pipes, so that no pixel is written to disk.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Contract = dict[str, Any]
Floats = NDArray[np.float32]
Run = Callable[[Floats, str], dict[str, Floats]]  # (images, name of a torch type) -> outputs by name

_LIBRARIES = (
    "medmoco", "torch", "torchvision", "timm", "monai", "onnxruntime", "detectron2", "safetensors", "numpy",
    "dynamic_network_architectures",
)  # fmt: skip
HALF_IMAGES = 2  # for half precision, which many processors compute slowly
ABSENT = 3  # exit code if the format's library is not installed


# One loader for each format: (path, preprocessing.json) -> Run


def load_safetensors(path: Path, contract: Contract) -> Run:
    """Load into the plain network of timm, MONAI or nnU-Net with strict=True."""
    from safetensors.torch import load_file

    net = plain_network(contract["model"])
    net.load_state_dict(load_file(path), strict=True)
    return of_network(net, contract)


def plain_network(model: Contract) -> Any:
    """Build the network of timm, MONAI or nnU-Net that "model" in preprocessing.json describes, with random weights."""
    if model["library"] == "timm":
        import timm

        stem: dict[str, Any] = {"embed_layer": conv_stem(model["conv_stem"])} if "conv_stem" in model else {}
        return timm.create_model(model["name"], **model["arguments"], **stem)
    import torch

    classes = {key: imported(model["arguments"][key]) for key in model.get("classes", ())}
    net = imported(model["function"])(**{**model["arguments"], **classes})
    if model["replaced_by_identity"]:
        net.set_submodule(model["replaced_by_identity"], torch.nn.Identity())
    return net


def imported(path: str) -> Any:
    """Return a class or function by the path that it is imported from."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def conv_stem(widths: list[int]) -> Callable[..., Any]:
    """Return a function that builds a transformer's convolutional stem from parts of timm."""
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer_hybrid import ConvStem

    last = len(widths) - 1
    shape: dict[str, Any] = {
        "depth": last + 1,
        "channels": widths,
        "kernel_size": [3] * last + [1],
        "stride": [2] * last + [1],
    }

    def embed(img_size: Any, in_chans: int, embed_dim: int, **_: Any) -> Any:
        parts = ConvStem(in_chans, **shape)
        return HybridEmbed(parts, img_size, patch_size=1, in_chans=in_chans, embed_dim=embed_dim, proj=False)

    return embed


def load_onnx(path: Path, contract: Contract) -> Run:
    """Load ONNX on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output["name"] for output in contract["outputs"]]

    def run(images: Floats, _: str) -> dict[str, Floats]:
        return dict(zip(names, session.run(names, {contract["input"]["name"]: images}), strict=True))

    return run


def load_timm(path: Path, contract: Contract) -> Run:
    """Let timm build the network and read the file."""
    import timm

    model = contract["model"]
    return of_network(timm.create_model(model["name"], **model["arguments"], checkpoint_path=path), contract)


def load_huggingface(path: Path, contract: Contract) -> Run:
    """Let timm build the network and load its weights from the folder."""
    import timm

    return of_network(timm.create_model(f"local-dir:{path}", pretrained=True), contract)


def load_torchvision(path: Path, contract: Contract) -> Run:
    """Load into torchvision's network, with a first layer for the channels, with strict=True."""
    import torch
    from torchvision import models

    build = contract["formats"]["torchvision"]
    net: Any = getattr(models, build["function"])(**build["arguments"])
    conv = net.get_submodule(build["first_conv"])
    first = torch.nn.Conv2d(
        contract["input"]["shape"][1],
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        bias=conv.bias is not None,
    )
    net.set_submodule(build["first_conv"], first)
    if build["replaced_by_identity"]:
        net.set_submodule(build["replaced_by_identity"], torch.nn.Identity())
    net.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return of_network(net, contract)


def load_program(path: Path, contract: Contract) -> Run:
    """Load torch.export's program."""
    import torch

    program = torch.export.load(path).module()

    def run(images: Floats, _: str) -> dict[str, Floats]:
        with torch.inference_mode():
            outputs = program(torch.from_numpy(images))
        named = zip(contract["outputs"], outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
        return {output["name"]: values.numpy() for output, values in named}

    return run


def load_detectron2(path: Path, contract: Contract) -> Run:
    """Compute what detectron2's ResNet computes from these tensors, in plain PyTorch.

    Source: detectron2's modeling/backbone/resnet.py.
    """
    import torch
    from torch.nn import functional

    state = torch.load(path, weights_only=True)["model"]
    strided = {3: "conv2", 2: "conv1"}  # by the layers of a block; STRIDE_IN_1X1 is false

    def conv(images: Any, name: str, stride: int = 1) -> Any:
        weight = state[f"{name}.weight"].to(images)
        groups, padding = images.shape[1] // weight.shape[1], weight.shape[-1] // 2
        norm = [state[f"{name}.norm.{key}"].to(images) for key in ("running_mean", "running_var", "weight", "bias")]
        images = functional.conv2d(images, weight, None, stride, padding, 1, groups)
        return functional.batch_norm(images, *norm)

    def block(images: Any, name: str, stride: int) -> Any:
        layers = sorted({key.split(".")[2] for key in state if key.startswith(f"{name}.conv")})
        out = images
        for layer in layers:
            out = conv(out, f"{name}.{layer}", stride if layer == strided[len(layers)] else 1)
            out = out.relu() if layer != layers[-1] else out
        shortcut = conv(images, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in state else images
        return (out + shortcut).relu()

    def run(images: Floats, precision: str) -> dict[str, Floats]:
        with torch.inference_mode():
            out = conv(torch.from_numpy(images).to(getattr(torch, precision)), "stem.conv1", 2).relu()
            out = functional.max_pool2d(out, 3, 2, 1)
            for stage in (2, 3, 4, 5):
                for number in range(len({key.split(".")[1] for key in state if key.startswith(f"res{stage}.")})):
                    out = block(out, f"res{stage}.{number}", 2 if stage > 2 and number == 0 else 1)
            return {"features": out.mean((2, 3)).float().numpy()}

    return run


def load_monai_bundle(path: Path, contract: Contract) -> Run:
    """Load a MONAI bundle; network, mirroring and calibration come from the bundle, not from the contract."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(path / "configs" / "inference.json")
    sys.path.insert(0, str(path))  # its configuration may import its scripts
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(torch.load(path / "models" / "model.pt", weights_only=True))
    net.eval()
    infer = parser.get_parsed_content("inferer")
    if "segmenter" in contract:

        def segment(images: Floats, _: str) -> dict[str, Floats]:
            with torch.inference_mode():
                return {"probabilities": infer(torch.from_numpy(images), lambda some: net(some).softmax(1)).numpy()}

        return segment
    finish = parser.get_parsed_content("postprocessing")

    def run(images: Floats, _: str) -> dict[str, Floats]:
        # Its inferer takes the windows of each volume, (N, W, C, S, S, S).
        given = images[:, None] if "windows" in contract else images
        with torch.inference_mode():
            outputs = infer(torch.from_numpy(given), net)
        last = contract["outputs"][-1]["name"]
        return {last: np.stack([finish({"pred": output})["pred"].numpy() for output in outputs])}

    return run


def load_nnunet(path: Path, contract: Contract) -> Run:
    """Build nnU-Net's network from the plans, and run its encoder on volumes with the axes Z, Y, X."""
    import torch

    plans = json.loads((path / "plans.json").read_text(encoding="utf-8"))
    build = plans["configurations"][contract["formats"]["nnunet"]["configuration"]]["architecture"]
    given, channels = build["arch_kwargs"], contract["input"]["shape"][1]
    classes = {key: imported(given[key]) for key in build["_kw_requires_import"] if given[key]}
    net = imported(build["network_class_name"])(input_channels=channels, num_classes=2, **{**given, **classes})
    state = torch.load(path / "checkpoint.pth", weights_only=True)["network_weights"]
    found = net.load_state_dict(state, strict=False)
    if found.unexpected_keys or any(".seg_layers." not in name for name in found.missing_keys):
        raise RuntimeError("the tensors are not those of nnU-Net's network")
    run = of_network(net.encoder, contract)
    return lambda images, precision: run(np.ascontiguousarray(images.transpose(0, 1, 4, 3, 2)), precision)


LOADERS: dict[str, Callable[[Path, Contract], Run]] = {
    "safetensors": load_safetensors,
    "timm": load_timm,
    "torchvision": load_torchvision,
    "detectron2": load_detectron2,
    "huggingface": load_huggingface,
    "monai-bundle": load_monai_bundle,
    "nnunet": load_nnunet,
    "onnx": load_onnx,
    "program": load_program,
}


# Post-processing that the contract defines


def of_network(net: Any, contract: Contract) -> Run:
    """Return a function that runs a torch network and post-processes its outputs as the contract defines."""
    import torch

    net.eval()

    def run(images: Floats, precision: str) -> dict[str, Floats]:
        kind = getattr(torch, precision)
        converted = net if precision == "float32" else copy.deepcopy(net).to(kind)
        with torch.inference_mode():
            views = torch.from_numpy(images).to(kind)
            outputs = pooled(converted(views)).float().numpy()
            if contract["classifier"] and contract["mirror"]["average"]:
                outputs = (outputs + converted(views.flip(-1)).float().numpy()) / 2
        return finish(outputs, contract["classifier"])

    return run


def pooled(outputs: Any) -> Any:
    """Return the features of volumes from feature maps (B, F, X, Y, Z), or from those of all stages."""
    last = outputs[-1] if isinstance(outputs, list) else outputs
    return last.mean((2, 3, 4)) if last.ndim == 5 else last


def finish(outputs: Floats, classifier: Contract | None) -> dict[str, Floats]:
    """Turn a network's outputs into features, or into logits and calibrated probabilities.

    Args:
        outputs: (N, F) or (N, L).
        classifier: Part of the contract.
    """
    if classifier is None:
        return {"features": outputs}
    logits = outputs.astype(np.float64)
    if classifier["exclusive"]:
        others = [np.logaddexp.reduce(np.delete(logits, label, 1), 1) for label in range(logits.shape[1])]
        logits = logits - np.stack(others, 1)
    lines = [classifier["calibration"][label] for label in classifier["labels"]]
    scores = logits * [line["slope"] for line in lines] + [line["intercept"] for line in lines]
    probabilities = np.exp(-np.logaddexp(0, -scores))
    return {"logits": logits.astype(np.float32), "probabilities": probabilities.astype(np.float32)}


def main() -> None:
    """Read (N, C, S, S) float32 images from standard input and write outputs; N is at least 2.

    Outputs are arrays "precision/name", and "libraries", a JSON object with the versions of the imported libraries.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text printed by a library must not mix with the outputs
    name, path = sys.argv[1], Path(sys.argv[2])
    contract = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    images = np.load(io.BytesIO(sys.stdin.buffer.read()))
    try:
        run = LOADERS[name](path, contract)
    except ModuleNotFoundError as error:
        print(error.name, file=sys.stderr)
        sys.exit(ABSENT)
    arrays: dict[str, Any] = {}
    for precision in contract["formats"][name]["precisions"]:
        try:
            # Two batch sizes: neither may be fixed in the file.
            few = images if precision == "float32" else images[:HALF_IMAGES]
            first, rest = run(few[:1], precision), run(few[1:], precision)
        except RuntimeError:
            if precision == "float32":
                raise
            continue  # PyTorch lacks an operation in this precision on this processor
        arrays |= {f"{precision}/{key}": np.concatenate([first[key], rest[key]]) for key in first}
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES if sys.modules.get(name)}
    stream = io.BytesIO()  # NumPy cannot write to a pipe
    np.savez(stream, libraries=np.array(json.dumps(versions)), **arrays)
    with out:
        out.write(stream.getvalue())


if __name__ == "__main__":
    main()
