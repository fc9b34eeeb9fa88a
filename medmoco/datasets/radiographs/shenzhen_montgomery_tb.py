"""Shenzhen and Montgomery tuberculosis sets of the US National Library of Medicine: the label is in the file name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source
from medmoco.utils.tables import read_bytes

ABOUT = About(
    name="Shenzhen and Montgomery tuberculosis sets",
    url="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/",
    licence="free to use with attribution to the National Library of Medicine",
    images=662 + 138,
)
_NAME = re.compile(r"(CHNCXR|MCUCXR)_\d{4}_([01])")
_PLACES = {"CHNCXR": ("Shenzhen", "ChinaSet_AllFiles/CXR_png"), "MCUCXR": ("Montgomery", "MontgomerySet/CXR_png")}
_SEX = re.compile(r"\b(male|female)\b|\bsex:\s*([mfo])\b", re.IGNORECASE)
_AGE = re.compile(r"\d+(?:\.\d+)?\s*[ymwd][a-z]*", re.IGNORECASE)


def prepare(source: Source) -> Prepared:
    """Read the names of the images and their readings (.txt files); either suffices."""
    readings = {PurePosixPath(file).stem: file for file in source.files if file.endswith(".txt")}
    stems = {PurePosixPath(image).stem for image in source.images} | set(readings)
    names = sorted(stem for stem in stems if _NAME.fullmatch(stem))
    texts = [_reading(source, readings.get(name)) for name in names]
    sets = [_PLACES[name[:6]] for name in names]
    table = pd.DataFrame(
        {
            "Path": [f"{folder}/{name}.png" for name, (_, folder) in zip(names, sets, strict=True)],
            "Sex": [next(filter(None, match.groups())) if (match := _SEX.search(text)) else "" for text in texts],
            "Age": [match[0] if (match := _AGE.search(text)) else "" for text in texts],
            "Hospital": [hospital for hospital, _ in sets],
            "Tuberculosis": [name[-1] for name in names],
        }
    )
    return Prepared(
        table=table,
        labels=["Tuberculosis"],
        notes=["`Tuberculosis` is the last digit of the file name; `Sex` and `Age` come from the readings."],
    )


def _reading(source: Source, file: str | None) -> str:
    return read_bytes(source.folder / file)[:10_000].decode(errors="replace") if file else ""
