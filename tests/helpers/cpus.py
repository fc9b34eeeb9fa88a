"""Other CPUs than this one, as far as libraries can be told not to use all that it has."""

from __future__ import annotations

import os

import cv2

try:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
except ImportError:  # an implementation detail of NumPy; without it, the tests of other libraries are left
    __cpu_dispatch__, __cpu_features__ = [], {}


def instruction_sets() -> dict[str, dict[str, str]]:
    """Return what the environment of a process must have for it to use fewer instructions than this CPU has.

    Libraries warn of what they are told to leave and would not use anyway, so that only what is there is named.

    Returns:
        By name; "oldest" is what every CPU of this architecture has, "no AVX-512" is there where it differs from all.
    """
    numpy = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    features = cv2.getCPUFeaturesLine().split()  # * is chosen as the program runs, ? is not there or already left
    opencv = [name[1:] for name in features if name.startswith("*") and not name.endswith("?")]
    sets = {"oldest": _environment(numpy, opencv, torch="default", onednn="SSE41", ipp="sse42")}
    wide = "AVX512", "X86_V4"
    numpy, opencv = ([name for name in names if name.startswith(wide)] for names in (numpy, opencv))
    if numpy or opencv:
        sets["no AVX-512"] = _environment(numpy, opencv, torch="avx2", onednn="AVX2", ipp="avx2")
    return sets


def _environment(numpy: list[str], opencv: list[str], *, torch: str, onednn: str, ipp: str) -> dict[str, str]:
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join([*os.environ.get("NPY_DISABLE_CPU_FEATURES", "").split(), *numpy]),
        "OPENCV_CPU_DISABLE": ",".join([*filter(None, [os.environ.get("OPENCV_CPU_DISABLE")]), *opencv]),
        "OPENCV_IPP": ipp,
        "ATEN_CPU_CAPABILITY": torch,
        "ONEDNN_MAX_CPU_ISA": onednn,
    }
