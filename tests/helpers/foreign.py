"""Files of weights as other projects write them, made from networks built here, without medmoco's tables of names."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

State = dict[str, Tensor]


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and scales that are not those of a new network."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                assert tensor is not None
                low = 0.5 if tensor is layer.weight or tensor is layer.running_var else -0.2
                tensor.data = low + torch.rand(tensor.shape, generator=generator)
            layer.num_batches_tracked = torch.tensor(7)
    return net.eval()


def torchvision_resnet(blocks: str = "basic", seed: int = 0, layers: tuple[int, ...] = (2, 2, 2, 2)) -> Any:
    """Return torchvision's ResNet-18, or with blocks="bottleneck" what timm calls resnet26."""
    kinds = {"basic": torchvision.models.resnet.BasicBlock, "bottleneck": torchvision.models.resnet.Bottleneck}
    torch.manual_seed(seed)
    return lively(torchvision.models.ResNet(kinds[blocks], list(layers)), seed)


def torchvision_densenet(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return lively(torchvision.models.densenet121(), seed)


def torchvision_vit(size: int = 64, seed: int = 0, width: int = 192, heads: int = 3) -> Any:
    """Return what timm calls vit_tiny_patch16_224, for images of another size."""
    torch.manual_seed(seed)
    net = torchvision.models.VisionTransformer(size, 16, 12, heads, width, 4 * width)
    nn.init.normal_(net.heads.head.weight)  # torchvision starts it at 0
    return net.eval()


def moco_v3_vit(size: int = 64, seed: int = 0, width: int = 192) -> Any:
    """Return timm's transformer with twelve heads and the fixed positions of the paper."""
    torch.manual_seed(seed)
    net = timm.models.VisionTransformer(size, 16, num_classes=5, embed_dim=width, depth=12, num_heads=12)
    side, quarter = size // 16, width // 4
    positions = torch.zeros(1, side * side + 1, width)
    for row in range(side):
        for column in range(side):
            for index in range(quarter):
                rate = 10000 ** -(index / quarter)
                values = np.sin(row * rate), np.cos(row * rate), np.sin(column * rate), np.cos(column * rate)
                positions[0, 1 + row * side + column, index::quarter] = torch.tensor(values, dtype=torch.float32)
    net.pos_embed.data = positions
    return net.eval()


def features(net: Any, gray: Tensor) -> Tensor:
    """Return pooled features of a gray image fed three times, whatever stands behind them."""
    images = gray.expand(-1, 3, -1, -1)
    with torch.inference_mode():
        if isinstance(net, timm.models.VisionTransformer):
            return net.forward_head(net.forward_features(images), pre_logits=True)
        for head in ("fc", "classifier", "heads"):
            if hasattr(net, head):
                before = getattr(net, head)
                setattr(net, head, nn.Identity())
                found = net(images)
                setattr(net, head, before)
                return found
    raise AssertionError


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def with_mlp(state: State, head: str, width: int) -> State:
    """Replace a classifier by the projector that MoCo v2 puts there."""
    body = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    layers = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (128, width), "2.bias": (128,)}
    return body | {f"{head}.{key}": torch.randn(shape) for key, shape in layers.items()}


def optimiser(state: State) -> dict[str, Any]:
    buffers = {index: {"momentum_buffer": torch.zeros(3)} for index in range(len(state))}
    return {"state": buffers, "param_groups": [{"lr": 0.03, "params": [*buffers]}]}


def moco(query: Any, key: Any, head: str = "fc", width: int = 512) -> dict[str, Any]:
    """As main_moco.py of facebookresearch/moco saves; MoCo-CXR's are of the same form."""
    state = {
        **under("module.encoder_q.", with_mlp(query.state_dict(), head, width)),
        **under("module.encoder_k.", with_mlp(key.state_dict(), head, width)),
        "module.queue": torch.randn(128, 32),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimiser(state)}


def moco_v3(query: Any, key: Any, head: str = "fc") -> dict[str, Any]:
    def mlp(state: State) -> State:
        body = {name: value for name, value in state.items() if not name.startswith(f"{head}.")}
        norm = {f"{head}.1.{name}": torch.randn(4) for name in ("weight", "bias", "running_mean", "running_var")}
        return body | {f"{head}.0.weight": torch.randn(4, 4), **norm, f"{head}.3.weight": torch.randn(4, 4)}

    state = {
        **under("module.base_encoder.", mlp(query.state_dict())),
        **under("module.momentum_encoder.", mlp(key.state_dict())),
        **{"module.predictor.0.weight": torch.randn(4, 4), "module.predictor.1.running_mean": torch.randn(4)},
    }
    scaler = {"scale": 65536.0, "growth_factor": 2.0}
    return {"epoch": 300, "arch": "r", "state_dict": state, "optimizer": optimiser(state), "scaler": scaler}


def bl0(query: Any, key: Any, settings: Any) -> dict[str, Any]:
    return {
        "opt": settings,
        "model": under("module.", query.state_dict()),
        "model_ema": key.state_dict(),
        "contrast": {"params": torch.tensor([-1]), "memory": torch.randn(32, 128)},
        "optimizer": optimiser(query.state_dict()),
        "epoch": 200,
    }


def lightly(query: Any, key: Any) -> dict[str, Any]:
    """As the tutorials do: the children of a torchvision network in a Sequential, inside a Lightning module."""
    backbone, momentum = (nn.Sequential(*list(net.children())[:-1]) for net in (query, key))
    state = {
        **under("backbone.", backbone.state_dict()),
        **under("projection_head.", {"layers.0.weight": torch.randn(4, 4), "layers.2.bias": torch.randn(4)}),
        **under("backbone_momentum.", momentum.state_dict()),
        **under("projection_head_momentum.", {"layers.0.weight": torch.randn(4, 4)}),
        **{"criterion.memory_bank.bank": torch.randn(128, 32), "criterion.memory_bank.bank_ptr": torch.zeros(1)},
    }
    return lightning(state)


def solo_learn(query: Any, key: Any, head: str = "fc") -> dict[str, Any]:
    def body(net: Any) -> State:
        return {name: value for name, value in net.state_dict().items() if not name.startswith(f"{head}.")}

    state = {
        **under("backbone.", body(query)),
        **{"classifier.weight": torch.randn(10, 4), "classifier.bias": torch.randn(10)},
        **{"queue": torch.randn(2, 128, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)},
        **{"projector.0.weight": torch.randn(4, 4), "momentum_projector.0.weight": torch.randn(4, 4)},
        **under("momentum_backbone.", body(key)),
        **{"momentum_classifier.weight": torch.randn(10, 4)},
    }
    return lightning(state)


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 9,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimiser(state)],
        "lr_schedulers": [{"last_epoch": 9}],
        "hyper_parameters": {"lr": 0.06},
    }


def tensorflow(net: Any, prefix: str = "") -> dict[str, NDArray[Any]]:
    """Return a bottleneck ResNet's variables under the names of ppwwyyxx/moco.tensorflow."""

    def kernel(layer: Any) -> NDArray[Any]:
        return np.ascontiguousarray(np.moveaxis(layer.weight.detach().numpy(), (2, 3, 1, 0), (0, 1, 2, 3)))

    def norm(name: str, layer: Any) -> dict[str, NDArray[Any]]:
        tensors = {"gamma": layer.weight, "beta": layer.bias, "mean/EMA": layer.running_mean}
        tensors["variance/EMA"] = layer.running_var
        return {f"{name}_bn/{leaf}": tensor.detach().numpy() for leaf, tensor in tensors.items()}

    stem = kernel(net.conv1)[:, :, ::-1]  # its images are BGR
    found = {"conv0/W": np.ascontiguousarray(stem), **norm("conv0", net.bn1)}
    for group, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
        for number, block in enumerate(stage):
            place = f"group{group}/block{number}"
            for index in (1, 2, 3):
                found[f"{place}/conv{index}/W"] = kernel(getattr(block, f"conv{index}"))
                found |= norm(f"{place}/conv{index}", getattr(block, f"bn{index}"))
            if block.downsample is not None:
                found[f"{place}/convshortcut/W"] = kernel(block.downsample[0])
                found |= norm(f"{place}/convshortcut", block.downsample[1])
    for name, shape in {"linear0_2048": (2048, 2048), "linear1_128": (2048, 128)}.items():
        found |= {f"{name}/W": np.zeros(shape, np.float32), f"{name}/b": np.zeros(shape[1], np.float32)}
    return {prefix + name: value for name, value in found.items()}


def detectron2(net: Any) -> State:
    """Return a ResNet's tensors under the names of detectron2, in a detector with frozen batch norm."""
    found = {}
    for key, value in net.state_dict().items():
        parts = key.split(".")
        if parts[0] == "fc" or parts[-1] == "num_batches_tracked":
            continue
        if parts[0] == "conv1":
            name = "stem.conv1.weight"
        elif parts[0] == "bn1":
            name = f"stem.conv1.norm.{parts[-1]}"
        else:
            inner = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
            inner |= {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)}
            stage = int(parts[0].removeprefix("layer")) + 1
            name = f"res{stage}.{parts[1]}.{inner['.'.join(parts[2:-1])]}.{parts[-1]}"
        found[name] = value
    return found


def detector(net: Any) -> dict[str, Any]:
    state = {
        **{"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
        **under("backbone.bottom_up.", detectron2(net)),
        **{"backbone.fpn_lateral2.weight": torch.randn(4, 4, 1, 1), "roi_heads.box_head.fc1.weight": torch.randn(4, 4)},
        "proposal_generator.rpn_head.conv.weight": torch.randn(4, 4, 3, 3),
    }
    return {"model": state, "iteration": 90000, "__author__": "MOCO"}


def torchvision_2017(net: Any) -> State:
    """Return a DenseNet's tensors as torchvision's published file has them."""
    found = {}
    for key, value in net.state_dict().items():
        for kind in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{kind}{number}.", f".{kind}.{number}.")
        if not key.endswith("num_batches_tracked"):
            found[key] = value
    return found


def lukemelas(net: Any) -> State:
    """Return an EfficientNet of timm under the names of lukemelas/EfficientNet-PyTorch."""
    layers = {"_conv_stem": net.conv_stem, "_bn0": net.bn1, "_conv_head": net.conv_head, "_bn1": net.bn2}
    layers["_fc"] = net.classifier
    for number, block in enumerate(block for stage in net.blocks for block in stage):
        if hasattr(block, "conv_pwl"):
            own = {"expand_conv": block.conv_pw, "bn0": block.bn1, "bn1": block.bn2}
            own |= {"project_conv": block.conv_pwl, "bn2": block.bn3}
        else:
            own = {"bn1": block.bn1, "project_conv": block.conv_pw, "bn2": block.bn2}
        if hasattr(block.se, "conv_reduce"):
            own |= {"se_reduce": block.se.conv_reduce, "se_expand": block.se.conv_expand}
        own["depthwise_conv"] = block.conv_dw
        layers |= {f"_blocks.{number}._{name}": layer for name, layer in own.items()}
    return {f"{name}.{leaf}": value for name, layer in layers.items() for leaf, value in layer.state_dict().items()}


def dinov2_vit(registers: int = 0, size: int = 56, seed: int = 0) -> Any:
    """Return what timm calls vit_small_patch14_dinov2, or with 4 registers vit_small_patch14_reg4_dinov2."""
    torch.manual_seed(seed)
    net = timm.models.VisionTransformer(
        size, 14, num_classes=0, embed_dim=384, depth=12, num_heads=6, init_values=1.0,
        reg_tokens=registers, no_embed_class=bool(registers),
    )  # fmt: skip
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.2)
    return net.eval()


def dinov2(net: Any) -> State:
    """Return its tensors as facebookresearch/dinov2 saves them: there the class token has a position in any case."""
    state = {**net.state_dict(), "mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        position = torch.randn(1, 1, 384)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    return state


def transformers_dinov2(net: Any, prefix: str = "") -> State:
    """Return its tensors as save_pretrained of Hugging Face's transformers writes them."""
    state, found = dinov2(net), {}
    outside = {"cls_token": "cls_token", "mask_token": "mask_token", "pos_embed": "position_embeddings"}
    outside |= {"register_tokens": "register_tokens", "patch_embed.proj.weight": "patch_embeddings.projection.weight"}
    outside["patch_embed.proj.bias"] = "patch_embeddings.projection.bias"
    inner = {"attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1"}
    inner["ls2.gamma"] = "layer_scale2.lambda1"
    for key, value in state.items():
        if key in outside:
            found[f"embeddings.{outside[key]}"] = value
        elif key.startswith("norm."):
            found[key.replace("norm.", "layernorm.")] = value
        else:
            _, number, name = key.split(".", 2)
            place = f"encoder.layer.{number}"
            if name.startswith("attn.qkv"):
                leaf = name.rpartition(".")[2]
                for index, part in enumerate(("query", "key", "value")):
                    found[f"{place}.attention.attention.{part}.{leaf}"] = value[384 * index : 384 * (index + 1)].clone()
                continue
            for ours, theirs in inner.items():
                name = name.replace(ours, theirs)
            found[f"{place}.{name}"] = value
    return under(prefix, found)
