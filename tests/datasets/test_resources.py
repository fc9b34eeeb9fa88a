from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.datasets.resources import EXAMPLES, example, resource
from medmoco.errors import SettingsError, UnexpectedError

ROOT = Path(__file__).parents[2]


def test_resource__lies_at_the_root_of_a_checkout() -> None:
    assert resource("configs/cxr.yaml") == ROOT / "configs/cxr.yaml"
    with pytest.raises(UnexpectedError, match=r"configs/cx\.yaml, which comes with medmoco, is missing: install"):
        resource("configs/cx.yaml")


def test_resource__lies_in_the_package_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "medmoco/resources/configs/cxr.yaml"
    installed.parent.mkdir(parents=True)
    installed.touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/cxr.yaml").touch()  # some other project's folder in site-packages
    monkeypatch.setattr("medmoco.__file__", str(tmp_path / "medmoco/__init__.py"))
    assert resource("configs/cxr.yaml") == installed


def test_examples__are_the_files_in_configs_except_the_demos() -> None:
    assert sorted([*EXAMPLES, "demo", "demo_3d"]) == sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
    with pytest.raises(SettingsError, match=r"--example xray: the examples are cxr, detection,"):
        example("xray")
