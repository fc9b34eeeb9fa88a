"""`python -m benchmarks [NAME ...]`: all benchmarks, or those of the given names, the keys of `ALL`."""

from __future__ import annotations

import sys

from benchmarks import (
    files,
    growth,
    intervals,
    jpeg,
    loading,
    startup,
    step,
    views,
    volume_costs,
    volume_packs,
    volumes,
    workers,
)

ALL = {
    "views": views.run,
    "volumes": volumes.run,
    "files": files.run,
    "jpeg": jpeg.run,
    "step": step.run,
    "loading": loading.run,
    "workers": workers.run,
    "growth": growth.run,
    "intervals": intervals.run,
    "startup": startup.run,
    "volume_packs": volume_packs.run,
    "volume_costs": volume_costs.run,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
