"""Run an exported file with nothing but its format's own library and NumPy, as a stranger would.

    python -P reload.py FORMAT PATH PREPROCESSING_JSON < images.npy > outputs.npz

The script imports nothing of medmoco and learns about the network from the two files alone. Images come in and outputs
go out through pipes, so that no pixel touches a disk.
"""

from __future__ import annotations

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

_LIBRARIES = ("medmoco", "torch", "torchvision", "timm", "monai", "onnxruntime", "detectron2", "safetensors", "numpy")
ABSENT = 3  # exit code where the format's library is not installed


# One loader for each format: (path, preprocessing.json) -> Run


def load_safetensors(path: Path, contract: Contract) -> Run:
    """Load into the plain timm or MONAI network, strict about every key."""
    from safetensors.torch import load_file

    model = contract["model"]
    if model["library"] == "timm":
        import timm

        net: Any = timm.create_model(model["name"], **model["arguments"])
    else:
        import torch
        from monai.networks import nets

        net = getattr(nets, model["name"])(**model["arguments"])
        if model["replaced_by_identity"]:
            net.set_submodule(model["replaced_by_identity"], torch.nn.Identity())
    net.load_state_dict(load_file(path), strict=True)
    return of_network(net, contract)


def load_onnx(path: Path, contract: Contract) -> Run:
    """Load ONNX on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output["name"] for output in contract["outputs"]]

    def run(images: Floats, _: str) -> dict[str, Floats]:
        return dict(zip(names, session.run(names, {contract["input"]["name"]: images}), strict=True))

    return run


def load_monai_bundle(path: Path, contract: Contract) -> Run:
    """Load a MONAI bundle: network, mirroring and calibration are its own, not the contract's."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(path / "configs" / "inference.json")
    net, infer, finish = (parser.get_parsed_content(part) for part in ("network_def", "inferer", "postprocessing"))
    net.load_state_dict(torch.load(path / "models" / "model.pt", weights_only=True))
    net.eval()

    def run(images: Floats, _: str) -> dict[str, Floats]:
        with torch.inference_mode():
            outputs = infer(torch.from_numpy(images), net)
        last = contract["outputs"][-1]["name"]
        return {last: np.stack([finish({"pred": output})["pred"].numpy() for output in outputs])}

    return run


LOADERS: dict[str, Callable[[Path, Contract], Run]] = {
    "safetensors": load_safetensors,
    "onnx": load_onnx,
    "monai-bundle": load_monai_bundle,
}


# What the contract asks for beyond the network


def of_network(net: Any, contract: Contract) -> Run:
    """Run a torch network and follow the contract from its outputs to what they mean."""
    import torch

    net.eval()

    def run(images: Floats, precision: str) -> dict[str, Floats]:
        kind = getattr(torch, precision)
        net.to(kind)
        with torch.inference_mode():
            views = torch.from_numpy(images).to(kind)
            outputs = net(views).float().numpy()
            if contract["classifier"] and contract["mirror"]["average"]:
                outputs = (outputs + net(views.flip(-1)).float().numpy()) / 2
        return finish(outputs, contract["classifier"])

    return run


def finish(outputs: Floats, classifier: Contract | None) -> dict[str, Floats]:
    """Turn a network's outputs into the contract's: features, or logits and calibrated probabilities.

    Args:
        outputs: (N, F) or (N, L).
        classifier: Of the contract.
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
    """Read (N, 1, S, S) float32 from standard input and write outputs; N is 2 or more.

    Outputs are arrays "precision/name", and "libraries", the JSON of the versions of what was imported.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the outputs
    name, path = sys.argv[1], Path(sys.argv[2])
    contract = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    images = np.load(io.BytesIO(sys.stdin.buffer.read()))
    try:
        run = LOADERS[name](path, contract)
    except ModuleNotFoundError as error:
        print(error.name, file=sys.stderr)
        sys.exit(ABSENT)
    arrays = {}
    for precision in contract["formats"][name]["precisions"]:
        # Two sizes of batch: neither may be baked into the file.
        first, rest = run(images[:1], precision), run(images[1:], precision)
        arrays |= {f"{precision}/{key}": np.concatenate([first[key], rest[key]]) for key in first}
    imported = {name: importlib.metadata.version(name) for name in _LIBRARIES if name in sys.modules}
    stream = io.BytesIO()  # NumPy cannot write to a pipe
    np.savez(stream, libraries=np.array(json.dumps(imported)), **arrays)
    with out:
        out.write(stream.getvalue())


if __name__ == "__main__":
    main()
