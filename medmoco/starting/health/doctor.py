"""Check the installation, then the machine; no library is imported before it is checked."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import import_module, metadata

import medmoco
from medmoco.errors import without_names
from medmoco.starting.health.finding import REINSTALL, Finding

_LIBRARIES = {
    "torch": "torch", "torchvision": "torch torchvision", "timm": "timm", "numpy": "numpy", "pydicom": "pydicom",
    "cv2": "opencv-python-headless", "pandas": "pandas",
}  # fmt: skip
"""Modules to import, and the packages that provide them."""


def doctor() -> list[Finding]:
    """Check versions, GPUs, decoders, shared memory, limits, folders, file locks, disk space, precision and threads.

    It tries file locks in a temporary folder in the working folder. Names of the user, the machine or folders do not
    appear in the findings, so that they can be shared.

    Returns:
        The findings; one whose state is "fault" stops a run.

    Examples:
        >>> import medmoco
        >>> medmoco.doctor()[0].name
        'medmoco'
    """
    findings = list(_installation())
    if all(finding.state == "ok" for finding in findings):
        from medmoco.starting.health.machine_checks import check_machine  # needs the libraries

        findings += check_machine()
    return findings


def _installation() -> Iterator[Finding]:
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("medmoco", "ok", f"{medmoco.__version__}, {system}")
    versions = []
    for name, packages in _LIBRARIES.items():
        shown = "OpenCV" if name == "cv2" else name
        try:
            versions.append(f"{shown} {import_module(name).__version__}")
        except Exception as error:  # anything that a broken library may raise
            yield Finding(shown, "fault", f"cannot be imported: {without_names(error)}", f"{REINSTALL} {packages}")
    try:
        versions.append(f"monai {metadata.version('monai')}")  # importing it takes seconds
    except metadata.PackageNotFoundError:
        yield Finding("monai", "fault", "is not installed", "install it: pip install monai")
    yield Finding("libraries", "ok", ", ".join(versions))
