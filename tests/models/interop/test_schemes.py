from __future__ import annotations

import re

import pytest

from medmoco.models.interop.schemes import NAMES, SCHEMES, asked_out, other_content, prefixes, roles

BY_NAME = {scheme.name: scheme for scheme in SCHEMES}


def test_prefixes__are_all_beginnings() -> None:
    assert prefixes(["model/a.b.weight", "c"]) == {"", "model/", "model/a.", "model/a.b."}


@pytest.mark.parametrize(
    ("name", "query", "key"),
    [
        ("medmoco", "model/query_encoder.backbone.net.", "model/key_encoder.backbone.net."),
        ("moco", "state_dict/module.encoder_q.", "state_dict/module.encoder_k."),
        ("moco", "encoder_q.", "encoder_k."),
        ("moco-cxr", "state_dict/module.encoder_q.", "state_dict/module.encoder_k."),
        ("moco-v3", "state_dict/module.base_encoder.", "state_dict/module.momentum_encoder."),
        ("bl0", "model/module.", "model_ema/"),
        ("lightly", "state_dict/backbone.", "state_dict/backbone_momentum."),
        ("solo-learn", "state_dict/backbone.", "state_dict/momentum_backbone."),
        ("solo-learn", "state_dict/encoder.", "state_dict/momentum_encoder."),
        ("detectron2", "model/backbone.bottom_up.", None),
        ("plain", "state_dict/module._orig_mod.backbone.", None),
        ("plain", "model/", "model_ema/module."),
    ],
)
def test_roles__by_what_stands_before_the_names(name: str, query: str, key: str | None) -> None:
    keys = [f"{prefix}conv1.weight" for prefix in (query, key) if prefix is not None]
    if name == "bl0":
        keys.append("contrast/memory")
    found = roles(BY_NAME[name], keys, prefixes(keys))
    assert query in found["query"]
    assert key is None or key in found["key"]
    assert key not in found["query"]
    assert query not in found.get("key", [])


def test_roles__need_their_marker() -> None:
    keys = ["model/module.conv1.weight", "model_ema/conv1.weight"]
    assert roles(BY_NAME["bl0"], keys, prefixes(keys)) == {}


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("state_dict/module.encoder_q.fc.0.weight", "projector"),
        ("state_dict/module.queue_ptr", "queue"),
        ("state_dict/criterion.memory_bank.bank", "queue"),
        ("contrast/params", "queue"),
        ("optimizer/state/0/exp_avg", "optimiser"),
        ("optimizer_states/0/state/3/momentum_buffer", "optimiser"),
        ("conv0/W/Momentum", "optimiser"),
        ("callbacks/ModelCheckpoint/best_model_score", "state of the training"),
        ("state_dict/momentum_projector.0.weight", "projector"),
        ("state_dict/projection_head_momentum.layers.0.weight", "projector"),
        ("state_dict/module.predictor.3.weight", "projector"),
        ("linear1_128/W", "projector"),
        ("state_dict/classifier.weight", "classifier"),
        ("model/roi_heads.box_predictor.cls_score.weight", "detector"),
        ("model/backbone.fpn_output2.bias", "detector"),
        ("state_dict/module.encoder_q.layer1.0.conv1.weight", None),
        ("state_dict/decoder.0.weight", None),
        ("unasked.weight", "as asked"),
    ],
)
def test_beside__says_what_is_left_out(key: str, what: str | None) -> None:
    assert other_content(key, "state_dict/module.encoder_q.", BY_NAME["moco"], ("unasked.*",)) == what


def test_beside__the_head_of_a_plain_network_is_a_classifier() -> None:
    assert other_content("head.fc.weight", "", BY_NAME["plain"], ()) == "classifier"


def test_asked_out__by_patterns() -> None:
    assert asked_out("model/a.b", ("x", "model/*"))
    assert not asked_out("model/a.b", ("a.*",))


def test_schemes__names_and_patterns() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for scheme in SCHEMES:
        for pattern in (scheme.query, scheme.key, scheme.marker):
            re.compile(pattern or "")
        assert (scheme.preparation.mean is None) == (scheme.preparation.std is None)
