"""`python -m benchmarks [views|step|jpeg|manifest]`: all of them, or one."""

from __future__ import annotations

import sys

from benchmarks import jpeg, manifest, step, views

ALL = {"views": views.run, "step": step.run, "jpeg": jpeg.run, "manifest": manifest.run}

for name in sys.argv[1:] or ALL:
    ALL[name]()
