from __future__ import annotations

import torch

from medmoco.models.interop.layouts import arranged, split_parts


def test_arranged__joins_parts_in_the_order_of_their_numbers() -> None:
    parts = {"v": torch.full((2, 3), 2.0), "q": torch.zeros(2, 3), "k": torch.ones(2, 3), "other": torch.ones(5)}
    names = {"v": "a.attn.qkv.weight#2", "q": "a.attn.qkv.weight#0", "k": "a.attn.qkv.weight#1", "other": "b"}
    found = arranged(parts, names, "transformers")
    assert found.names == {"v": "a.attn.qkv.weight", "q": "a.attn.qkv.weight", "k": "a.attn.qkv.weight", "other": "b"}
    assert list(found.tensors) == ["v", "other"]
    assert found.tensors["v"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert set(found.how) == {"v", "q", "k"}
    split = split_parts({"a.attn.qkv.weight": found.tensors["v"]}, "transformers")
    assert {name: value[0, 0].item() for name, value in split.items()} == {
        "a.attn.qkv.weight#0": 0, "a.attn.qkv.weight#1": 1, "a.attn.qkv.weight#2": 2,
    }  # fmt: skip


def test_arranged__parts_that_do_not_belong_together_are_not_joined() -> None:
    parts = {"q": torch.zeros(2, 3), "k": torch.zeros(2, 4), "v": torch.zeros(2, 3)}
    found = arranged(parts, {key: f"a.attn.qkv.weight#{i}" for i, key in enumerate(parts)}, "transformers")
    assert found.tensors["q"].shape == (2, 3)  # which no network takes
    assert not found.how


def test_arranged__the_class_token_keeps_its_position_where_it_has_registers() -> None:
    tensors = {"cls": torch.ones(1, 1, 2), "pos": torch.arange(10.0).reshape(1, 5, 2), "reg": torch.zeros(1, 4, 2)}
    names = {"cls": "cls_token", "pos": "pos_embed", "reg": "reg_token"}
    found = arranged(tensors, names, "dinov2")
    assert found.tensors["cls"].tolist() == [[[1, 2]]]
    assert found.tensors["pos"].tolist() == tensors["pos"][:, 1:].tolist()
    assert set(found.how) == {"cls", "pos"}
    without = arranged(tensors, {key: name for key, name in names.items() if key != "reg"}, "dinov2")
    assert torch.equal(without.tensors["pos"], tensors["pos"])
    assert not without.how
