"""Files that come with medmoco: example settings, and the films of the demo."""

from __future__ import annotations

from pathlib import Path

import medmoco
from medmoco.errors import SettingsError, UnexpectedError

EXAMPLES = ("cxr", "detection", "fundus", "imagenet", "oct", "segmentation", "ultrasound")
"""Names of the files in configs/, except demo.yaml and demo_3d.yaml, whose paths `medmoco demo` fills in."""


def resource(name: str) -> Path:
    """Return the path of a file or folder, such as "configs/cxr.yaml".

    A wheel has these files in medmoco/resources, a checkout at its root.

    Raises:
        UnexpectedError: it is missing.
    """
    package = Path(medmoco.__file__).parent
    for folder in (package / "resources", package.parent):
        if (folder / name).exists():
            return folder / name
    raise UnexpectedError(f"{name}, which comes with medmoco, is missing: install medmoco again")


def chest_films() -> Path:
    """Return the folder of 1,500 paediatric chest films of 96 pixels that come with medmoco, to try it on real images.

    It is manifest and images in one: `data.manifest` and `data.root` both name it. The labels are `Pneumonia` and, for
    films with pneumonia, `Viral`; blank means unknown. README.md in it states the source and the licence (CC BY 4.0).

    Raises:
        UnexpectedError: it is missing.

    Examples:
        >>> import medmoco
        >>> films = medmoco.chest_films()
        >>> config = {"out": "runs/films", "data": {"manifest": films, "root": films, "labels": ["Pneumonia"]}}
        >>> medmoco.load_config(config).data.labels["Pneumonia"].missing
        'ignore'
    """
    return resource("manifests/chest_films")


def example(name: str) -> str:
    """Return the text of an example settings file.

    Raises:
        SettingsError: there is no example of this name.
    """
    if name not in EXAMPLES:
        raise SettingsError(f"--example {name}: the examples are {', '.join(EXAMPLES)}")
    return resource(f"configs/{name}.yaml").read_text(encoding="utf-8")
