"""The prepare.py that exports contain, as the module that a project imports."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from medmoco.exporting.standalone import standalone_source


@cache
def shipped() -> ModuleType:
    module = ModuleType("shipped_prepare")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(standalone_source(), "prepare.py", "exec"), module.__dict__)
    return module
