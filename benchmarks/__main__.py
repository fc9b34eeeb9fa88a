"""`python -m benchmarks [views|files|jpeg|step|loading|workers|growth|intervals|startup]`: all of them, or one."""

from __future__ import annotations

import sys

from benchmarks import files, growth, intervals, jpeg, loading, startup, step, views, workers

ALL = {
    "views": views.run,
    "files": files.run,
    "jpeg": jpeg.run,
    "step": step.run,
    "loading": loading.run,
    "workers": workers.run,
    "growth": growth.run,
    "intervals": intervals.run,
    "startup": startup.run,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
