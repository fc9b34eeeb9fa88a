"""`python -m benchmarks [views|pack|step]`: all of them, or one."""

from __future__ import annotations

import sys

from benchmarks import pack, step, views

ALL = {"views": views.run, "pack": pack.run, "step": step.run}

for name in sys.argv[1:] or ALL:
    ALL[name]()
