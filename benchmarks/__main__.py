"""`python -m benchmarks [views|volumes|files|jpeg|step|loading|manifest|growth|intervals|startup]`: all, or one."""

from __future__ import annotations

import sys

from benchmarks import files, growth, intervals, jpeg, loading, manifest, startup, step, views, volumes

ALL = {
    "views": views.run,
    "volumes": volumes.run,
    "files": files.run,
    "jpeg": jpeg.run,
    "step": step.run,
    "loading": loading.run,
    "manifest": manifest.run,
    "growth": growth.run,
    "intervals": intervals.run,
    "startup": startup.run,
}

for name in sys.argv[1:] or ALL:
    ALL[name]()
