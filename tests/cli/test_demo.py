from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from medmoco import config
from medmoco.cli import demo
from tests.helpers.commands import Call

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Note the commands of a demo instead of running them, in a working folder of its own."""
    commands: list[list[str]] = []

    def run(words: Sequence[str]) -> int:
        commands.append(list(words))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_run", run)
    monkeypatch.setattr(demo, "_imagenet_weights", lambda: None)
    return commands


def test_demo__prints_each_command_and_runs_it(call: Call, ran: list[list[str]]) -> None:
    said = call("demo").stdout
    shown = [shlex.split(line)[2:] for line in said.splitlines() if line.startswith("$ medmoco ")]
    assert shown == ran == demo.demo_commands(Path("demo"), None)
    assert said.endswith("next:     medmoco init FOLDER starts with your own images\n")


def test_demo__compares_with_imagenet_weights_that_torch_has_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch.hub import get_dir

    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HOME", tmp_path), ("XDG_CACHE_HOME", tmp_path / "cache"), ("TORCH_HOME", "~/torch")):
        monkeypatch.setenv(name, str(value))
        assert demo._imagenet_weights() is None
        weights = Path(get_dir(), "checkpoints/resnet18-f37072fd.pth")
        weights.parent.mkdir(parents=True)
        weights.touch()
        assert demo._imagenet_weights() == weights
    comparing = [words for words in demo.demo_commands(Path("demo"), weights) if f"imagenet={weights}" in words]
    assert [words[0] for words in comparing] == ["evaluate", "curve"]


def test_demo__says_when_it_compares_with_imagenet_weights(call: Call) -> None:
    assert "ImageNet ResNet-18" in call("demo", "--help").stdout
    assert "ImageNet ResNet-18" in (ROOT / "docs/demo.md").read_text(encoding="utf-8")
    (line,) = (line for line in call("--help").stdout.splitlines() if " demo " in line)
    assert "ImageNet" not in line


@pytest.mark.parametrize("name", ["demo", "~a $b: 'c' #d"])
def test_settings__differ_from_the_file_only_in_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = demo.demo_settings(Path(name))
    (folder / "demo.yaml").write_text(made)
    settings = config.load(folder / "demo.yaml")
    assert settings.out == Path(name) / "run"
    assert settings.data.manifest == Path(settings.data.root) == ROOT / "manifests/chest_films"
    tree, original = yaml.safe_load(made), yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    for key in ("manifest", "root"):
        tree["data"][key] = original["data"][key]
    assert {**tree, "out": original["out"]} == original


def test_settings__in_a_checkout_are_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert demo.demo_settings(Path("demo")) == (ROOT / "configs/demo.yaml").read_text()


def test_demo__resumes_with_the_commands_that_are_left(
    call: Call, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = demo._run
    monkeypatch.setattr(demo, "_run", lambda words: 75 if words[0] == "pretrain" else noted(words))
    said = call("demo", "--out", "my demo", code=75).stderr
    assert said == "to continue the demo: medmoco demo --out 'my demo' --resume\n"
    assert [words[0] for words in ran] == ["check", "preview"]
    monkeypatch.setattr(demo, "_run", noted)
    assert "$ medmoco pretrain --config 'my demo/demo.yaml' --resume\n" in call(*shlex.split(said)[5:]).stdout
    assert [words[0] for words in ran[2:]] == ["pretrain", "evaluate", "curve", "export", "verify", "report"]
    call("demo", "--out", "my demo", "--resume")
    assert len(ran) == 8


@pytest.mark.usefixtures("ran")
def test_demo__replaces_only_a_demo_and_only_if_asked_to(call: Call) -> None:
    call("demo")
    assert "demo is not empty: add --resume to continue" in call("demo", code=2).stderr
    Path("demo/run").mkdir()
    Path("demo/run/report.html").touch()
    call("demo", "--overwrite")
    assert not Path("demo/run").exists()
    Path("demo/thesis.tex").touch()
    assert "demo holds other files than a demo" in call("demo", "--overwrite", code=2).stderr
    assert Path("demo/thesis.tex").exists()
    assert "exclude each other" in call("demo", "--resume", "--overwrite", code=2).stderr
    assert "absent does not hold a demo that could" in call("demo", "--out", "absent", "--resume", code=2).stderr
    assert "cannot be used for the demo: Not a directory" in call("demo", "--out", "demo/thesis.tex", code=2).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 3), (signal.SIGTERM, 4)])
def test_run__waits_for_a_command_that_ends_itself_after_a_signal(number: signal.Signals, code: int) -> None:
    """As Ctrl-C on a terminal, which both processes get, and as `docker stop`, which only the first one gets."""
    child = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), sys.exit(3)))\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(4)))\n"
        f"parent = os.getppid()\nos.kill(parent, {int(number)})\n"
        f"if {int(number)} == signal.SIGINT: os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(20)\n"
    )
    parent = (
        "import subprocess, sys\nfrom medmoco.cli import demo\n"
        f"start, child = subprocess.Popen, {child!r}\n"
        "subprocess.Popen = lambda _: start([sys.executable, '-c', child])\n"
        "print(demo._run(['pretrain']))\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == f"{code}\n", done.stderr
