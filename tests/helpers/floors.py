"""Print the lowest version of each dependency that pyproject.toml allows, as constraints for `pip install -c`.

pip has no option for this, unlike uv, which not everyone has. Packages that these need in turn are free.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def floors() -> list[str]:
    """Return a line such as "torch==2.10" for each dependency of the package and of its optional features."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in optional if name != "dev" for line in optional[name])]
    return [_floor(Requirement(line)) for line in lines]


def _floor(requirement: Requirement) -> str:
    (lowest,) = (clause.version for clause in requirement.specifier if clause.operator == ">=")
    return f"{requirement.name}=={lowest}"


if __name__ == "__main__":
    print("\n".join(floors()))
