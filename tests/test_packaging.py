"""The wheel and the source distribution hold what a user needs, and the wheel runs away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESOURCES = "medmoco/resources/"
pytestmark = pytest.mark.slow


def _run(*command: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=1800,
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it, as `make dist` does."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def _tracked(*folders: str) -> set[str]:
    return set(_run("git", "ls-files", "-z", "--", *folders).stdout.rstrip("\0").split("\0"))


def test_wheel__holds_the_package_and_what_the_demo_needs(wheel: Path) -> None:
    resources = _tracked("configs", "manifests/README.md", "manifests/chest_films")
    expected = _tracked("medmoco") | {RESOURCES + name for name in resources}
    names = {name for name in _names(wheel) if ".dist-info/" not in name}
    assert names == expected
    assert wheel.stat().st_size < 10e6


def test_wheel__from_the_tree_holds_the_same_files(wheel: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    assert _names(next(tmp_path.glob("*.whl"))) == _names(wheel)


def test_sdist__holds_what_the_wheel_is_built_from_and_no_more(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    pages = {".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    folders = _tracked("medmoco", "configs", "manifests/README.md", "manifests/chest_films")
    assert names == folders | pages


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment, which sees this one's dependencies but not its medmoco.

    A .pth file adds a folder to the path without running the .pth files in it, such as that of the editable install.
    """
    folder = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    _run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    assert _run(python, "-c", "import medmoco; print(medmoco.__file__)", cwd=folder).stdout.startswith(str(site))
    return folder


def test_installed__prints_its_help_and_examples(installed: Path) -> None:
    medmoco = installed / "venv/bin/medmoco"
    assert "pretrain" in _run(medmoco, "--help", cwd=installed).stdout
    assert _run(medmoco, "config", "--example", "cxr", cwd=installed).stdout == (ROOT / "configs/cxr.yaml").read_text()


def test_installed__runs_the_demo_from_its_own_films(installed: Path) -> None:
    """The demo trains for two epochs here."""
    medmoco = installed / "venv/bin/medmoco"
    program = (
        "from pathlib import Path; from medmoco.cli import demo, main; import sys\n"
        "made = demo.demo_settings\n"
        "demo.demo_settings = lambda folder: made(folder).replace('epochs: 16', 'epochs: 2')\n"
        "sys.argv = ['medmoco', 'demo']; main()\n"
    )
    said = _run(installed / "venv/bin/python", "-c", program, cwd=installed, OMP_NUM_THREADS="1").stdout
    assert "1,500 rows: train 900 of 499 patients" in said
    assert str(installed / "venv") not in said
    assert "manifest: venv/lib/python" in (installed / "demo/demo.yaml").read_text()
    assert (installed / "demo/run/report.html").is_file()
    commands = (installed / "demo/commands.txt").read_text().splitlines()
    assert [line.split()[1] for line in commands] == [
        "check", "preview", "pretrain", "evaluate", "curve", "export", "verify", "report",
    ]  # fmt: skip
    _run(medmoco, "demo", "--resume", cwd=installed)  # nothing is left to do
