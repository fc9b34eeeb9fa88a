from __future__ import annotations

import re

from medmoco import errors


def test_tree__docstring_draws_every_class_under_its_base_with_its_exit_code() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, tuple[str | None, int]] = {}
    ancestors: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^([ │├└─]+)([A-Z]\w+)(?: +(\d+))?  +\w", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        ancestors = [entry for entry in ancestors if entry[0] < depth]
        base = ancestors[-1][1] if ancestors else None
        assert match[3] or base, f"{name} has no exit code"
        drawn[name] = (base, int(match[3]) if match[3] else drawn[base or ""][1])
        ancestors.append((depth, name))
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert drawn == {
        name: (kind.__base__.__name__ if kind is not errors.MedmocoError else None, kind.exit_code)
        for name, kind in classes.items()
    }
