"""`python -m benchmarks [views|jpeg|pack|step|manifest|intervals|startup]`: all of them, or one."""

from __future__ import annotations

import sys

from benchmarks import intervals, jpeg, manifest, pack, startup, step, views

ALL = {
    "views": views.run,
    "jpeg": jpeg.run,
    "pack": pack.run,
    "step": step.run,
    "manifest": manifest.run,
    "intervals": intervals.run,
    "startup": startup.run,
}

for name in sys.argv[1:] or ALL:
    ALL[name]()
