"""`python -m benchmarks [views|step]`: all of them, or one."""

from __future__ import annotations

import sys

from benchmarks import step, views

ALL = {"views": views.run, "step": step.run}

for name in sys.argv[1:] or ALL:
    ALL[name]()
