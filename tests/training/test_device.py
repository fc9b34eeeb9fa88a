from __future__ import annotations

import pytest
import torch

from medmoco.config import TrainSettings
from medmoco.errors import SettingsError
from medmoco.training.device import autocast, choose_device, choose_precision, has_amx, memory_explained

CPU = torch.device("cpu")


def test_choose_device__missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(TrainSettings()) == CPU
    with pytest.raises(SettingsError, match="no usable GPU"):
        choose_device(TrainSettings(device="cuda"))


@pytest.mark.parametrize(("amx", "expected"), [(True, "bf16"), (False, "fp32")])
def test_choose_precision__cpu_takes_bf16_only_with_amx(
    monkeypatch: pytest.MonkeyPatch, amx: bool, expected: str
) -> None:
    monkeypatch.setattr("medmoco.training.device.has_amx", lambda: amx)
    assert choose_precision(TrainSettings(), CPU)[0] == expected


@pytest.mark.parametrize("amx", [True, False])
def test_has_amx__with_new_and_old_torch(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    assert has_amx() is amx
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_amx() is amx


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_choose_precision__gpu(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert choose_precision(TrainSettings(), torch.device("cuda"))[0] == expected


def test_choose_precision__what_the_user_says_stands() -> None:
    assert choose_precision(TrainSettings(precision="fp32"), CPU) == ("fp32", "train.precision")
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        choose_precision(TrainSettings(precision="fp16"), CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast__multiplies_in_that_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_memory_explained__says_what_to_lower() -> None:
    train = TrainSettings(global_batch_size=512, accumulation_steps=2)
    with (
        pytest.raises(SettingsError, match=r"global_batch_size 512\.\nRaise train\.accumulation_steps \(now 2\)"),
        memory_explained(train),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
