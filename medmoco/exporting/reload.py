"""Run an exported encoder with nothing but its own library and NumPy, as a stranger would.

    python -P reload.py FILE PREPROCESSING_JSON < images.npy > features.npy

The script imports nothing of medmoco and learns about the encoder from the two files alone. Images come in and features
go out through pipes, so that no pixel touches a disk.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Run = Callable[[Floats], Floats]


def through_pytorch(file: Path, contract: dict[str, Any]) -> Run:
    """Load safetensors into the plain timm or MONAI network, strict about every key."""
    import torch
    from safetensors.torch import load_file

    model = contract["model"]
    if model["library"] == "timm":
        import timm

        net: torch.nn.Module = timm.create_model(model["name"], **model["arguments"])
    else:
        from monai.networks import nets

        net = getattr(nets, model["name"])(**model["arguments"])
        net.set_submodule(model["replaced_by_identity"], torch.nn.Identity())
    net.load_state_dict(load_file(file), strict=True)
    net.eval()

    def run(images: Floats) -> Floats:
        with torch.inference_mode():
            features: Floats = net(torch.from_numpy(images)).numpy()
        return features

    return run


def through_onnxruntime(file: Path, contract: dict[str, Any]) -> Run:
    """Load ONNX on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Floats) -> Floats:
        features: Floats = session.run([contract["output"]["name"]], {contract["input"]["name"]: images})[0]
        return features

    return run


LOADERS = {".safetensors": through_pytorch, ".onnx": through_onnxruntime}


def main() -> None:
    """Read (N, 1, S, S) float32 from standard input, write (N, F) float32 to standard output; N is 2 or more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the features
    file, contract = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    images = np.load(io.BytesIO(sys.stdin.buffer.read()))
    run = LOADERS[file.suffix](file, contract)
    stream = io.BytesIO()  # NumPy cannot write to a pipe
    # Two sizes of batch: neither may be baked into the file.
    np.save(stream, np.concatenate([run(images[:1]), run(images[1:])]))
    with out:
        out.write(stream.getvalue())


if __name__ == "__main__":
    main()
