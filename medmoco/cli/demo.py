"""`medmoco demo`: the usual path from images to an export, on films that come with medmoco.

Each command is printed and then run in a process of its own, so that it does exactly what it does when you type it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from medmoco.cli.options import path
from medmoco.datasets.resources import chest_films, resource
from medmoco.errors import SettingsError

if TYPE_CHECKING:
    from medmoco.config.base import Tree

PANEL = "Setup"
commands = typer.Typer()

SETTINGS = "demo.yaml"
TITLE, TITLE_OF_VOLUMES = "Encoder pretrained on 900 chest films", "Encoder pretrained on CT phantoms"
DONE = "commands.txt"
"""The commands that have ended, one a line; --resume runs the others."""

PATIENTS = 150
"""Synthetic patients of the demo of volumes."""

WRITTEN = {SETTINGS, DONE, "data", "pack", "run", "run-check", "views.png", "export"}
"""Everything in the folder of a demo; only a folder with nothing else is replaced."""


@commands.command(rich_help_panel=PANEL)
def demo(
    out: Annotated[
        Path | None,
        typer.Option(parser=path, help="New or empty folder for everything that is written (default: demo)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a demo that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Draw CT volumes and use them instead of films (default folder: demo-3d).")
    ] = False,
) -> None:
    """Try medmoco on 1,500 small chest films that come with it: check, pretrain, evaluate, export. Takes minutes.

    If PyTorch has downloaded an ImageNet ResNet-18 before, it is evaluated as well.
    """
    if resume and overwrite:
        raise SettingsError("--resume and --overwrite exclude each other; give one")
    folder = out or Path("demo-3d" if volumes else "demo")
    _make_folder(folder, resume, overwrite, volumes)
    record = folder / DONE
    done = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    for words in volume_commands(folder) if volumes else demo_commands(folder, _imagenet_weights()):
        command = shlex.join(["medmoco", *words])
        if command in done:
            continue
        if resume and words[0] == "pretrain":
            words = [*words, "--resume"]
        print(f"\n$ {shlex.join(['medmoco', *words])}", flush=True)
        if code := _run(words):
            again = f"medmoco demo{' --volumes' * volumes} --out {shlex.quote(str(folder))} --resume"
            print(f"to continue the demo: {again}", file=sys.stderr)
            raise typer.Exit(code)
        with record.open("a", encoding="utf-8") as file:
            file.write(f"{command}\n")
    print(_pointers(folder, volumes))


def volume_commands(folder: Path) -> list[list[str]]:
    """Return the words after `medmoco` of each command of the demo of volumes."""
    config, run, export = ["--config", str(folder / SETTINGS)], str(folder / "run"), str(folder / "export")
    drawn = ["--out", str(folder / "data"), "--volumes", "--patients", str(PATIENTS), "--image-size", "64"]
    return [
        ["phantom", *drawn, "--format", "dicom", "--workers", "2"],
        ["check", *config],
        ["pack", *config, "--out", str(folder / "pack")],
        ["preview", *config, "--out", str(folder / "views.png"), "--images", "3", "--views", "4"],
        ["pretrain", *config],
        ["evaluate", *config, "--encoder", run, "--out", f"{run}/evaluation", "--test"],
        ["export", "--run", run, "--out", export],
        ["verify", export],
        ["report", run, "--card", f"{export}/MODEL_CARD.md", "--title", TITLE_OF_VOLUMES],
    ]


def demo_commands(folder: Path, weights: Path | None) -> list[list[str]]:
    """Return the words after `medmoco` of each command.

    Args:
        folder: Folder of the demo, with its settings.
        weights: torchvision's weights of ResNet-18 to compare with, if there are any.
    """
    config = ["--config", str(folder / SETTINGS)]
    run, export, views = (str(folder / name) for name in ("run", "export", "views.png"))
    encoders = ["--encoder", run, *(["--encoder", f"imagenet={weights}"] if weights else [])]
    return [
        ["check", *config],
        ["preview", *config, "--out", views],
        ["pretrain", *config],
        ["evaluate", *config, *encoders, "--out", f"{run}/evaluation", "--test"],
        ["curve", *config, *encoders, "--out", f"{run}/curve", "--draws", "10", "--test"],
        ["export", "--run", run, "--out", export],
        ["verify", export],
        ["report", run, "--card", f"{export}/MODEL_CARD.md", "--images", "--title", TITLE],
    ]


def _make_folder(folder: Path, resume: bool, overwrite: bool, volumes: bool) -> None:
    """Write the settings into a new folder, or check that it holds a demo to resume."""
    try:
        names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        is_demo = SETTINGS in names and names <= WRITTEN
        if resume:
            if not is_demo:
                raise SettingsError(f"{folder} does not hold a demo that could be resumed; run it without --resume")
            return
        if names and not overwrite:
            raise SettingsError(
                f"{folder} is not empty: add --resume to continue the demo in it, --overwrite to replace it,\n"
                "or choose another folder with --out"
            )
        if names and not is_demo:
            raise SettingsError(f"{folder} holds other files than a demo, so it is not replaced; choose another --out")
        if names:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = volume_settings(folder) if volumes else demo_settings(folder)
        (folder / SETTINGS).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder} cannot be used for the demo: {error.strerror}") from None


def demo_settings(folder: Path) -> str:
    """Return the text of configs/demo.yaml with its paths, which are those of a checkout, replaced."""
    films = chest_films()
    if films.is_relative_to(Path.cwd()):
        films = films.relative_to(Path.cwd())
    text = resource(f"configs/{SETTINGS}").read_text(encoding="utf-8")
    return _with_paths(text, {"demo/run": folder / "run", "manifests/chest_films": films})


def volume_settings(folder: Path) -> str:
    """Return the text of configs/demo_3d.yaml with its paths replaced."""
    text = resource("configs/demo_3d.yaml").read_text(encoding="utf-8")
    names = ("run", "data/{split}", "data", "pack")
    return _with_paths(text, {f"demo-3d/{name}": folder / name for name in names})


def _with_paths(text: str, paths: Mapping[str, Path]) -> str:
    for old, new in paths.items():
        text = text.replace(f": {old}\n", f": {_yaml(new)}\n")
    return text


def _yaml(value: Path) -> str:
    from medmoco.config.paths import as_written
    from medmoco.config.yaml_text import dump

    tree: Tree = {"key": as_written(value)}
    return dump(tree, width=10**6).removeprefix("key: ").rstrip("\n")


def _imagenet_weights() -> Path | None:
    """Return torchvision's weights of ResNet-18 if torch has downloaded them before.

    Source: torch.hub, `get_dir`, without importing torch, which takes seconds.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return next(iter(sorted(Path(os.path.expanduser(home), "hub/checkpoints").glob("resnet18-*.pth"))), None)


def _run(words: Sequence[str]) -> int:
    """Run a command, which decides itself what to do about Ctrl-C and SIGTERM; return its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "medmoco", *words])  # noqa: S603 - our own words

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:  # a terminal sends Ctrl-C to both processes
            process.terminate()

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pointers(folder: Path, volumes: bool) -> str:
    """Return where to look next; `medmoco report` has just named the report."""
    figures = f"figures:  {folder}/run/curve/*.svg, AUROC by the number of labelled patients\n"
    return (
        f"views:    {folder}/views.png, {'volumes' if volumes else 'films'} and what the encoder sees of them\n"
        f"{'' if volumes else figures}"
        f"encoder:  {folder}/export, with its preprocessing, model card and verification\n"
        "next:     medmoco init FOLDER starts with your own images"
    )
