"""Files that are missing, that are none, or that a symbolic link takes outside the root."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.manifest.file_checks import FileFault, check_files, file_faults, similar_file_hint
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import ManifestError
from tests.data.manifest.test_manifest import settings, train

# `world` holds a root with files and links; what each of them is:

FAULTS: dict[str, FileFault | None] = {
    "plain.png": None,
    "folder/plain.png": None,
    "folder/../plain.png": None,
    "folder": FileFault.NO_FILE,
    "pipe": FileFault.NO_FILE,
    "socket": FileFault.NO_FILE,
    "absent.png": FileFault.MISSING,
    "plain.png/below": FileFault.MISSING,
    "dangling": FileFault.MISSING,
    "loop": FileFault.UNREACHABLE,
    "loop/below": FileFault.UNREACHABLE,
    "circle": FileFault.UNREACHABLE,
    "link-inside": None,
    "folder-link-inside/plain.png": None,
    "chain-inside": None,
    "link-outside": FileFault.OUTSIDE,
    "folder-link-outside/secret.png": FileFault.OUTSIDE,
    "folder-link-outside/deeper/secret.png": FileFault.OUTSIDE,
    "chain-outside": FileFault.OUTSIDE,
    "link-to-namesake": FileFault.OUTSIDE,
    "folder-link-outside": FileFault.NO_FILE,
    "link-to-pipe": FileFault.NO_FILE,
    "link-to-root/plain.png": None,
    "link-to-root/../elsewhere/secret.png": FileFault.OUTSIDE,
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    root, elsewhere, namesake = tmp_path / "root", tmp_path / "elsewhere", tmp_path / "root-2"
    for folder in (root / "folder", elsewhere / "deeper", namesake):
        folder.mkdir(parents=True)
    for file in ("root/plain.png", "root/folder/plain.png", "elsewhere/secret.png", "elsewhere/deeper/secret.png"):
        (tmp_path / file).touch()
    (namesake / "x.png").touch()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(root)  # a socket's path must be short
        bound.bind("socket")
        os.chdir(here)
    links = {
        "dangling": "nothing", "loop": "loop", "circle": "circle-2", "circle-2": "circle",
        "link-inside": "folder/plain.png", "folder-link-inside": "folder", "chain-inside": "link-inside",
        "link-outside": "../elsewhere/secret.png", "folder-link-outside": str(elsewhere),
        "chain-outside": "link-outside", "link-to-namesake": "../root-2/x.png", "link-to-pipe": "pipe",
        "link-to-root": ".",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize("slash", ["", "/"])
def test_file_faults__every_kind(world: Path, slash: str) -> None:
    root = f"{world}{slash}"
    files = [f"{world}/{name}" for name in FAULTS]
    assert dict(zip(FAULTS, file_faults(files, root, allow_symlinks=False), strict=True)) == FAULTS
    allowed = {name: None if fault is FileFault.OUTSIDE else fault for name, fault in FAULTS.items()}
    assert dict(zip(FAULTS, file_faults(files, root, allow_symlinks=True), strict=True)) == allowed


def test_file_faults__root_is_a_link_or_below_one(world: Path) -> None:
    (world.parent / "data").symlink_to("root")
    (world.parent / "disk").symlink_to(".")
    for root in (world.parent / "data", world.parent / "disk/root", world.parent / "disk/data"):
        files = [f"{root}/{name}" for name in FAULTS]
        assert dict(zip(FAULTS, file_faults(files, str(root), allow_symlinks=False), strict=True)) == FAULTS


def test_file_faults__relative_root(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.parent)
    for root in ("root", "./root", "root/"):
        files = [os.path.join(root, name) for name in FAULTS]
        assert dict(zip(FAULTS, file_faults(files, root, allow_symlinks=False), strict=True)) == FAULTS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_file_faults__no_permission(world: Path) -> None:
    (world / "folder").chmod(0)
    faults = list(file_faults([f"{world}/folder/plain.png"], str(world), allow_symlinks=False))
    (world / "folder").chmod(0o700)
    assert faults == [FileFault.UNREACHABLE]


def test_file_faults__links_in_the_folder_of_a_series(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("root/own", "root/inside", "root/outside", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.dcm").touch()
    (root / "inside/2.dcm").symlink_to("../own/1.dcm")
    (root / "outside/2.dcm").symlink_to(tmp_path / "elsewhere/1.dcm")
    (root / "linked").symlink_to("../elsewhere")
    files = [f"{root}/{name}" for name in ("own", "inside", "outside", "linked", "outside")]
    outside = FileFault.OUTSIDE
    found = list(file_faults(files, str(root), allow_symlinks=False, folders=True))
    assert found == [None, None, outside, outside, outside]
    assert list(file_faults(files, str(root), allow_symlinks=True, folders=True)) == [None] * 5


def test_file_faults__follows_only_links(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving a path costs ten times as much as looking at it, so of a million files only links are resolved."""
    resolved = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(str(path)) or real(path))
    names = ["plain.png", "folder/plain.png", "link-inside"] * 10
    list(file_faults([f"{world}/{name}" for name in names], str(world), allow_symlinks=False))
    assert set(resolved) == {str(world), f"{world}/link-inside"}


def test_check_files__missing(tmp_path: Path) -> None:
    split = train(tmp_path, "Path\n" + "".join(f"{name}.png\n" for name in "abcdef"))
    here = [*split.files]
    (tmp_path / "there.png").touch()
    here[0] = str(tmp_path / "there.png")
    split.files[:] = here
    with pytest.raises(ManifestError) as caught:
        check_files(split, settings(tmp_path))
    assert "5 of 6 train files do not exist (rows 3, 4, 5, ...)" in str(caught.value)
    assert ".png" not in str(caught.value)
    check_files(split.select(np.array([0])), settings(tmp_path))


def test_check_files__no_files_and_places_outside_the_root(tmp_path: Path) -> None:
    for folder in ("images/train/folder", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("images/train/a.png", "images/shared.png", "elsewhere/b.png"):
        (tmp_path / name).touch()
    (tmp_path / "images/train/out").symlink_to("../../elsewhere")
    (tmp_path / "images/train/up.png").symlink_to("../shared.png")
    root = str(tmp_path / "images/{split}")
    data = settings(tmp_path, root=root)

    def check(*paths: str, **changes: bool) -> None:
        (tmp_path / "train.csv").write_text("\n".join(["Path", *paths]))
        changed = data.model_copy(update=changes)
        check_files(load_manifest(changed, ["train"])["train"], changed)

    check("a.png")
    with pytest.raises(ManifestError, match=r"1 of 2 train files are folders, pipes or devices \(rows 3\);"):
        check("a.png", "folder")
    with pytest.raises(ManifestError, match=r"(?s)2 of 3 train files lie outside data.root.*\(rows 2, 4\);") as caught:
        check("out/b.png", "a.png", "up.png")
    assert "data.allow_symlinks: true" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    check("out/b.png", "a.png", "up.png", allow_symlinks=True)


NEAR = {
    "Scans/p1/a.png": "with different upper and lower case",
    "scans/P1/a.PNG": "with different upper and lower case",
    "Scans/p1/b.png": "with different spaces around its name",
    "Scans/p1/1.2.dcm ": "with different spaces around its name",
    "Scans\\p1\\1.2.dcm": "with / instead of each backslash",
    "scans\\p1\\1.2.dcm": "with / instead of each backslash and with different upper and lower case",
    "Scans/p1/M\u00fcller.png": "in another Unicode normal form",
    "Scans/p1/1.2": "with another suffix",
    "Scans/p1/1.2.png": "with another suffix",
    "Scans/p1/bare.dcm": "with another suffix",
    "elsewhere/top.png": "without the first folder of its Path",
    "a/b/top.png": "without the first 2 folders of its Path",
    "p1/1.2.dcm": "in a folder that its Path omits",
}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "Scans" / "p1"
    folder.mkdir(parents=True)
    for name in ("a.PNG", "b.png ", "1.2.dcm", "Mu\u0308ller.png", "bare", "link.png", "../../top.png"):
        (folder / name).touch()
    (folder / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", NEAR)
def test_similar_file_hint__says_how_the_names_differ(scans: Path, path: str) -> None:
    assert similar_file_hint(f"{scans}/{path}").startswith(f"the file exists {NEAR[path]}")


@pytest.mark.parametrize(
    "path", ["Scans/p1/absent.png", "x/y/z.png", "Scans/p1/Folder.png", "top.png/below", "Scans/p2/a.png"]
)
def test_similar_file_hint__nothing_is_like_it(scans: Path, path: str) -> None:
    assert similar_file_hint(f"{scans}/{path}") == ""


def test_similar_file_hint__sees_what_has_changed_since(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scans)
    assert similar_file_hint("New.png") == ""
    (scans / "new.PNG").touch()
    os.utime(scans, ns=(1, 1))  # a clock may be too coarse to tell
    assert similar_file_hint("New.png").startswith("the file exists with different upper and lower case")


def test_check_files__says_where_the_first_missing_ones_are(scans: Path) -> None:
    paths = ["top.png", "Top.png", "Scans/p1/A.png", "Scans\\p1\\bare.png", "absent.png"]
    (scans / "train.csv").write_text("\n".join(["Path", *paths]) + "\n")
    data = settings(scans, root=str(scans))
    with pytest.raises(ManifestError) as caught:
        check_files(load_manifest(data, ["train"])["train"], data)
    assert str(caught.value).splitlines()[1:] == [
        "rows 3, 4: the file exists with different upper and lower case;",
        "row 5: the file exists with another suffix (file extension);",
        "check data.root and the Path column",
    ]
