"""Findings on rows and files made by hand; on real files in test_audit.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmoco.config import DataSettings
from medmoco.data.image_io.fingerprints import pattern
from medmoco.data.image_io.images import FileFormat
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.manifest.overlap import overlap_notices
from medmoco.data.quality import findings
from medmoco.data.quality.duplicates import Groups
from medmoco.data.quality.examine import Examined
from medmoco.data.quality.findings import Finding, Rows, Shortcut, gather_rows, pixel_codes
from tests.helpers.films import edited, film

GRAY = FileFormat("PNG", 8, "MONOCHROME2")


def rows_of(sources: str, *, patient: Sequence[int] = (), study: Sequence[int] = (), file: Sequence[int] = ()) -> Rows:
    """Rows 2, 3, ... of splits by their first letter: t(rain), v(al), s for test, p(retraining)."""
    names = ["train", "val", "test", "pretraining"]
    count = len(sources)
    nobody = [-1] * count
    source = np.array(["tvsp".index(letter) for letter in sources])
    present = tuple(names[: 3 + ("p" in sources)])
    return Rows(
        sources=present,
        source=source,
        number=np.arange(2, count + 2),
        file=np.array(file or range(count)),
        patient=np.array(patient or nobody),
        study=np.array(study or nobody),
        own=source < 3,
    )


def files_of(count: int, **changed: object) -> Examined:
    plain = {
        "digests": np.arange(count * 32, dtype=np.uint8).reshape(count, 32),
        "patterns": np.array([pattern(film(seed)) for seed in range(count)]),
        "sizes": np.full((count, 2), 64, np.int32),
        "constant": np.zeros(count, bool),
        "format_of": np.zeros(count, np.int16),
        "formats": [GRAY],
    }
    return Examined(**{**plain, **changed})  # type: ignore[arg-type]


def found(all_findings: Iterable[Finding]) -> dict[str, tuple[str, list[int], list[str]]]:
    """Return severity, rows and details of what was found, by kind."""
    return {one.kind: (one.severity, one.rows.tolist(), list(one.details)) for one in all_findings if len(one.rows)}


def test_gather_rows__codes_are_of_all_splits(tmp_path: Path) -> None:
    header = "Path,PatientID,StudyID\n"
    for name, text in {
        "a/train": f"{header}x.png,p,1\ny.png,,2\n",
        "a/test": f"{header}x.png,q,1\nz.png,p,1\n",
        "b/train": "Path\nz.png\nw.png\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.csv").write_text(text)
    own = load_manifest(DataSettings(manifest=tmp_path / "a", root="films"), ("train", "test"))
    other = load_manifest(DataSettings(manifest=tmp_path / "b", root="./films/"), ("train",))["train"]
    rows, images = gather_rows(list(own.values()), [other])
    assert [Path(file).name for file in images.files] == ["x.png", "y.png", "z.png", "w.png"]
    assert images.frames.tolist() == [1] * 4
    assert images.series.tolist() == [""] * 4
    assert rows.file.tolist() == [0, 1, 0, 2, 2, 3]
    assert rows.source.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows.number.tolist() == [2, 3, 2, 3, 2, 3]
    assert rows.own.tolist() == [True] * 4 + [False] * 2
    assert rows.held_out.tolist() == [False, False, True, True, False, False]
    assert rows.patient[0] == rows.patient[3] != rows.patient[2]
    assert rows.patient[[1, 4, 5]].tolist() == [-1, -1, -1]
    assert rows.study[0] == rows.study[3] not in (rows.study[1], rows.study[2], -1)
    assert rows.study[4] == -1
    assert rows.name(3) == "test row 3"


def test_unreadable__each_kind_by_itself() -> None:
    hint = "gone; the file exists with different upper and lower case; look again"
    faults = {(1, "file missing"): hint, (3, "file damaged"): "odd", (4, "file missing"): "away"}
    format_of = np.array([0, -1, 0, -1, -1], np.int16)
    files = files_of(5, faults=faults, format_of=format_of)
    assert found(findings.unreadable(rows_of("ttvsp"), files)) == {
        "file missing": ("fault", [1], [hint]),
        "file damaged": ("fault", [3], ["odd"]),
        "no image in pretraining data": ("warning", [4], ["away"]),
    }
    missing, *others = findings.unreadable(rows_of("ttvss"), files)
    assert missing.remark == "train row 3: the file exists with different upper and lower case"
    kinds = [missing.kind, *(one.kind for one in others)]
    assert kinds == ["file missing", "file empty", "file cut off", "file damaged", "file too large", "file unreadable"]


def test_odd_images__constant_small_and_what_the_reader_says() -> None:
    sizes = np.array([[64, 40], [63, 64], [63, 20], [0, 0], [64, 64]])
    files = files_of(
        5,
        sizes=sizes,
        constant=np.array([True, False, False, False, True]),
        format_of=np.array([0, 0, 0, -1, 0], np.int16),
        notices={"stored in colour; converted to luma": [1, 4], "no VOI window in the file: scaled": [4]},
    )
    assert found(findings.odd_images(rows_of("ttvsp"), files, 64)) == {
        "constant image": ("warning", [0], ["all pixels have the same value"]),
        "smaller than the canvas": ("warning", [2], ["63 x 20 pixels"]),
        "stored in colour": ("warning", [1], ["stored in colour; converted to luma"]),
    }


def test_mixed_formats__rows_unlike_most() -> None:
    formats = [GRAY, FileFormat("DICOM", 12, "MONOCHROME1"), FileFormat("DICOM", 8, "MONOCHROME2")]
    files = files_of(6, formats=formats, format_of=np.array([2, 0, 1, 0, -1, 1], np.int16))
    both = list(findings.mixed_formats(rows_of("ttvssp"), files))
    assert found(both) == {
        "mixed bit depth": ("warning", [2], ["12, most have 8"]),
        "mixed photometric interpretation": ("warning", [2], ["MONOCHROME1, most have MONOCHROME2"]),
    }
    assert both[0].remark == "8: 3, 12: 1"
    nothing = files_of(2, formats=[], format_of=np.array([-1, -1], np.int16))
    assert not found(findings.mixed_formats(rows_of("tt"), nothing))


def test_in_two_splits__are_named_at_the_later_row() -> None:
    rows = rows_of("tttvvss", patient=[0, 0, 1, 0, 2, 2, 3], study=[0, 0, 1, 4, 2, 2, 1], file=[0, 1, 2, 3, 4, 0, 5])
    pixels = np.array([0, 1, -1, 3, 1, 0, -1])
    every = list(findings.in_two_splits(rows, pixels))
    assert found(every) == {
        "patient in two splits": ("fault", [3, 5], ["same patient as train row 2", "same patient as val row 6"]),
        "study in two splits": ("fault", [5, 6], ["same study as val row 6", "same study as train row 4"]),
        "file in two splits": ("fault", [5], ["same file as train row 2"]),
        "pixels in two splits": ("fault", [4], ["same pixels as train row 3"]),
    }
    assert [one.remark for one in every[:3]] == ["2 patients", "2 studies", ""]
    assert "--merge-duplicates" in every[3].remark


def test_same_pixels__within_a_split_are_a_warning() -> None:
    rows = rows_of("tttvs", file=[0, 1, 0, 3, 4])
    assert found([findings.same_pixels(rows, np.array([5, 5, 5, 5, -1]))]) == {
        "same pixels twice": ("warning", [1], ["same pixels as train row 2"])
    }


@pytest.mark.parametrize(
    ("pixels", "file", "same_root", "severity"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], False, "warning"),  # only the IDs agree
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], True, "fault"),
        ([4, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], False, "fault"),  # its train has an image of theirs
        ([0, 1, 2, 3, 4, 5], [0, 1, 5, 3, 4, 5], False, "fault"),
    ],
)
def test_in_pretraining__ids_alone_are_weaker_than_images(
    pixels: list[int], file: list[int], same_root: bool, severity: str
) -> None:
    rows = rows_of("ttvspp", patient=[0, 9, 1, 2, 0, 2], file=file)
    every = list(findings.in_pretraining(rows, np.array(pixels), [same_root]))
    assert found(every)["patient in pretraining data"] == (severity, [3], ["same patient as pretraining row 7"])
    assert ("perhaps by chance" in every[-1].remark) == (severity == "warning")
    file_found = found(every).get("file in pretraining data")
    assert file_found == (("fault", [2], ["same file as pretraining row 7"]) if file[2] == 5 else None)


def test_in_pretraining__pixels_of_val_and_test_but_not_of_train() -> None:
    rows = rows_of("ttvspp")
    assert found(findings.in_pretraining(rows, np.array([7, 1, 7, 3, 7, 3]), [False])) == {
        "pixels in pretraining data": (
            "fault",
            [2, 3],
            ["same pixels as pretraining row 6", "same pixels as pretraining row 7"],
        )
    }


def test_nearly_same__the_later_row_and_where_it_stands() -> None:
    films = [
        film(0),
        film(1),
        edited(film(1), "gamma"),
        edited(film(0), "jpeg"),
        film(2),
        film(3),
        edited(film(2), "half"),
    ]
    films += [edited(film(3), "window")]
    patterns = np.array([pattern(pixels) for pixels in films])
    files = files_of(8, patterns=patterns)
    rows = rows_of("tttvssps")
    assert found(findings.nearly_same(rows, files, np.arange(8), Groups(8))) == {
        "near duplicate in two splits": ("warning", [3], ["nearly the same as train row 2"]),
        "near duplicate": ("warning", [2, 7], ["nearly the same as train row 3", "nearly the same as test row 7"]),
        "near duplicate in pretraining data": ("warning", [4], ["nearly the same as pretraining row 8"]),
    }
    nothing = found(findings.nearly_same(rows, files, np.full(8, -1), Groups(8)))
    assert not nothing


def test_nearly_same__exact_copies_are_compared_once() -> None:
    patterns = np.array([pattern(film(0)), pattern(film(0)), pattern(edited(film(0), "jpeg"))])
    rows = rows_of("ttt")
    assert found(findings.nearly_same(rows, files_of(3, patterns=patterns), np.array([0, 0, 1]), Groups(3))) == {
        "near duplicate": ("warning", [2], ["nearly the same as train row 2"])
    }


def test_pixel_codes__of_constant_and_unreadable_files_are_none() -> None:
    digests = np.zeros((5, 32), np.uint8)
    digests[1:3] = 7
    files = files_of(
        5,
        digests=digests,
        constant=np.array([False, False, False, True, False]),
        format_of=np.array([0, 0, 0, 0, -1], np.int16),
    )
    codes = pixel_codes(rows_of("tttttt", file=[0, 1, 2, 3, 4, 1]), files)
    assert codes[1] == codes[2] == codes[5] != codes[0] >= 0
    assert codes[3:5].tolist() == [-1, -1]


@pytest.mark.parametrize(("low", "warns"), [(0.59, False), (0.6, True)])
def test_shortcut__warns_where_it_could_pass_for_a_result(low: float, warns: bool) -> None:
    assert Shortcut("A", "width", 0.7, low, 0.8, None).warns == warns


def test_doubtful_ids__across_all_sources(tmp_path: Path) -> None:
    for name, ids in {
        "a/train": ["12", "7.0", "nan", "x"],
        "a/test": ["12.0", "2.5E+09"],
        "b/train": ["7", "nan"],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = "".join(f"{number}.png,{patient}\n" for number, patient in enumerate(ids))
        (tmp_path / f"{name}.csv").write_text(f"Path,PatientID\n{rows}")
    own = load_manifest(DataSettings(manifest=tmp_path / "a", root="films"), ("train", "test"))
    other = load_manifest(DataSettings(manifest=tmp_path / "b", root="films"), ("train",))["train"]
    every = [*own.values(), replace(other, name="pretraining")]
    rows, _ = gather_rows(every[:2], every[2:])
    said = {
        kind: [rows.name(at) for at in where]
        for kind, (_, where, _) in found(findings.doubtful_ids(rows, every)).items()
    }
    assert said == {
        "patient id with and without .0": ["train row 3", "test row 2"],
        "patient id like a blank": ["train row 4", "pretraining row 3"],
        "patient id rounded": ["test row 3"],
    }
    assert not list(findings.doubtful_ids(rows_of("tv"), every[:1]))


def test_in_two_splits__says_nothing_of_patients_that_nobody_names() -> None:
    rows = rows_of("ttv", study=[0, 1, 2])
    kinds = [one.kind for one in findings.in_two_splits(rows, np.arange(3))]
    assert kinds == ["study in two splits", "file in two splits", "pixels in two splits"]
    rows = rows_of("tsp", patient=[0, 1, -1])
    assert [one.kind for one in findings.in_pretraining(rows, np.arange(3), [True])] == [
        "file in pretraining data", "pixels in pretraining data"
    ]  # fmt: skip


PADDED = st.sampled_from(["{}", " {}", "{} ", "\u00a0{}"])
IDS = st.lists(st.tuples(st.sampled_from(["", "P1", "p1", "1", "01", "1 2"]), PADDED), min_size=1, max_size=6)


@given(st.tuples(IDS, IDS, IDS))
def test_in_two_splits__patients_as_a_plain_loop_finds_them(ids: tuple[list[tuple[str, str]], ...]) -> None:
    names = ("train", "val", "test")
    with TemporaryDirectory() as folder:
        for name, own in zip(names, ids, strict=True):
            lines = [f'{name}{number}.png,"{shape.format(patient)}"' for number, (patient, shape) in enumerate(own)]
            Path(folder, f"{name}.csv").write_text("\n".join(["Path,PatientID", *lines]) + "\n")
        splits = load_manifest(DataSettings(manifest=Path(folder), root="films"), names)
    rows, _ = gather_rows(list(splits.values()), [])
    expected = [
        f"{name} row {number}"
        for at, (name, own) in enumerate(zip(names, ids, strict=True))
        for number, (patient, _) in enumerate(own, 2)
        if patient and any(patient == other for before in ids[:at] for other, _ in before)
    ]
    shared = found(findings.in_two_splits(rows, np.full(len(rows.file), -1))).get("patient in two splits", ("", [], []))
    assert [rows.name(at) for at in shared[1]] == expected
    pairs = sum(len({p for p, _ in a if p} & {p for p, _ in b if p}) for a, b in combinations(ids, 2))
    assert sum(int(notice.split()[0]) for notice in overlap_notices(splits)) == pairs
