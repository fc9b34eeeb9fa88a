"""The manifest reader: what it accepts, what it refuses, and the row it names."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits, read_table, select_where
from medmoco.errors import ManifestError

PLAIN = "Path,PatientID,Finding\na.png,00123,1\nb.png,NA,0\nc.png,00123,\nd.png,123,-1\n"


def settings(manifest: Path, labels: object = (), root: str = "images") -> DataSettings:
    tree = {"manifest": manifest, "root": root, "labels": list(labels) if isinstance(labels, tuple) else labels}
    return DataSettings.model_validate(tree)


def train(tmp_path: Path, text: str | bytes, labels: object = ()) -> Split:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "train.csv").write_bytes(data)
    return load_manifest(settings(tmp_path, labels), ["train"])["train"]


def refusal(tmp_path: Path, text: str | bytes, labels: object = ()) -> str:
    with pytest.raises(ManifestError) as caught:
        train(tmp_path, text, labels)
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    assert "train.csv" in message
    return message


def test_load_manifest__plain(tmp_path: Path) -> None:
    split = train(tmp_path, PLAIN, ("Finding",))
    assert split.rows.tolist() == [2, 3, 4, 5]
    assert split.files.tolist() == ["images/a.png", "images/b.png", "images/c.png", "images/d.png"]
    assert split.frames.tolist() == [1, 1, 1, 1]
    assert split.table["PatientID"].tolist() == ["00123", "NA", "00123", "123"]
    assert split.patients.tolist() == [0, 1, 0, 2]
    assert split.label_names == ("Finding",)
    np.testing.assert_array_equal(split.raw_labels[:, 0], [1, 0, np.nan, -1])
    np.testing.assert_array_equal(split.labels[:, 0], [1, 0, np.nan, np.nan])
    assert split.labels.dtype == split.raw_labels.dtype == np.float32
    assert len(split.sha256) == 64
    assert split.notices == ()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"uncertain": "zero", "missing": "ignore"}, [1, 0, np.nan, 0]),
        ({"uncertain": "one", "missing": "zero"}, [1, 0, 0, 1]),
        ({"uncertain": "ignore", "missing": "one"}, [1, 0, 1, np.nan]),
    ],
)
def test_load_manifest__policy(tmp_path: Path, policy: dict[str, str], expected: list[float]) -> None:
    split = train(tmp_path, PLAIN, {"Finding": policy})
    np.testing.assert_array_equal(split.labels[:, 0], expected)
    np.testing.assert_array_equal(split.raw_labels[:, 0], [1, 0, np.nan, -1])


def test_load_manifest__labels_as_chexpert_writes_them(tmp_path: Path) -> None:
    split = train(tmp_path, "Path,B,A\na,1.0,-1.0\nb, 0 ,\n", ("A", "B"))
    assert split.label_names == ("A", "B")
    np.testing.assert_array_equal(split.raw_labels, [[-1, 1], [np.nan, 0]])


@pytest.mark.parametrize("cell", ["2", "yes", "nan", "NA", "0.5", "-", "1,0"])
def test_load_manifest__label_cell_refused(tmp_path: Path, cell: str) -> None:
    message = refusal(tmp_path, f'Path,A\na,1\nb,"{cell}"\nc,"{cell}"\n', ("A",))
    assert "row 3 (and 1 more rows)" in message
    assert "'A' must be 1, 0, -1" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"", ["empty"]),
        (b"\xef\xbb\xbf\n \n", ["row 1"]),
        (b"Path,A\n", ["no rows"]),
        (b"path,A\na,1\n", ["no column 'Path'", "did you mean 'path'", "'A'"]),
        (b"Image Index;A\na;1\n", ["no column 'Path'", "'Image Index', 'A'"]),
        (b"Path,A\na,1\nb\n", ["row 3 has 1 cells", "header has 2"]),
        (b"Path,A\na,1,2\nb,1\n", ["row 2 has 3 cells"]),
        (b'Path,A\n"a\nb",1\nb,1\nc,1,1\n', ["row 4 has 3 cells"]),
        (b'Path,A\na,1\n"b,1\nc,1\n', ["row 3", "double quote"]),
        (b'Path,A\na,1\n"b"x,1\nc,1\n', ["row 3", "double quote"]),
        (b"Path,A\na,1\nb\xff,1\n", ["line 3", "UTF-8"]),
        ("Path,A\na,1\n".encode("utf-16"), ["UTF-8"]),
        (b"Path,A\na,1\nb\0,1\n", ["line 3", "NUL"]),
        (b"Path,A,A\na,1,1\n", ["'A' twice"]),
        (b"Path,A\na,1\n ,1\n", ["row 3", "blank"]),
        (b"Path,A\na,1\n,1\n", ["row 3", "blank"]),
        (b"Path,A\na,1\n/etc/x,1\n", ["row 3", "absolute"]),
        (b"Path,A\na,1\nC:\\x,1\n", ["row 3", "absolute"]),
        (b"Path,A\na,1\n\\\\server\\x,1\n", ["row 3", "absolute"]),
        (b"Path,A\na,1\n../x,1\n", ["row 3", "leaves data.root"]),
        (b"Path,A\na,1\nb/../../x,1\n", ["row 3", "leaves data.root"]),
        (b"Path,A\na,1\nb\\..\\..\\x,1\n", ["row 3", "leaves data.root"]),
        (b"Path,A\na,1\nb,1\na,0\n", ["row 4", "as row 2"]),
        (b"Path,Frame\na,1\na,2\na,2\n", ["row 4", "Path and Frame as row 3"]),
        (b"Path,Frame\na,1\na,0\n", ["row 3", "Frame"]),
        (b"Path,Frame\na,1\na,1.5\n", ["row 3", "Frame"]),
        (b"Path,Frame\na,1\na,x\n", ["row 3", "Frame"]),
    ],
)
def test_load_manifest__refused(tmp_path: Path, text: bytes, parts: list[str]) -> None:
    message = refusal(tmp_path, text)
    for part in parts:
        assert part in message


def test_load_manifest__harmless_dots_and_colons(tmp_path: Path) -> None:
    split = train(tmp_path, "Path\na/../b.png\na..b.png\n12:30.png\n...png\n")
    assert split.files.tolist() == ["images/a/../b.png", "images/a..b.png", "images/12:30.png", "images/...png"]


def test_load_manifest__frames(tmp_path: Path) -> None:
    assert train(tmp_path, "Path,Frame\na,1\na,2.0\na,12\nb,\n").frames.tolist() == [1, 2, 12, 1]


def test_load_manifest__label_not_a_column(tmp_path: Path) -> None:
    message = refusal(tmp_path, "Path,effusion,B\na,1,1\n", ("Effusion",))
    assert "did you mean 'effusion'" in message
    assert "data.labels" in message


def test_load_manifest__messages_hold_no_ids(tmp_path: Path) -> None:
    text = "Path,PatientID,A\nsecret/4711.png,4711,1\nsecret/4711.png,4711,4711\n"
    assert "4711" not in refusal(tmp_path, text)
    assert "4711" not in refusal(tmp_path, text.replace("/4711.png,", "/4711.jpg,", 1), ("A",))


def test_load_manifest__without_patients(tmp_path: Path) -> None:
    split = train(tmp_path, "Path\na\nb\n")
    assert split.patients.tolist() == [0, 1]
    assert split.notices == ("train: no PatientID column; every row counts as its own patient",)
    split = train(tmp_path, "Path,PatientID\na,7\nb,\nc, \nd,7\n")
    assert split.patients.tolist() == [0, 1, 2, 0]
    assert split.notices == ("train: 2 rows have a blank PatientID; each counts as its own patient",)


def write_three(folder: Path, column: str = "PatientID") -> None:
    for name, ids in {"train": "1 2 2", "val": "3 2", "test": "4"}.items():
        rows = "".join(f"{name}/{number}.png,{patient}\n" for number, patient in enumerate(ids.split()))
        (folder / f"{name}.csv").write_text(f"Path,{column}\n{rows}")


def test_load_manifest__patients_across_splits(tmp_path: Path) -> None:
    write_three(tmp_path)
    splits = load_manifest(settings(tmp_path))
    assert [splits[name].patients.tolist() for name in ("train", "val", "test")] == [[0, 1, 1], [2, 1], [3]]


def test_load_manifest__unnamed_patients_never_shared(tmp_path: Path) -> None:
    write_three(tmp_path, column="Person")
    splits = load_manifest(settings(tmp_path))
    codes = np.concatenate([split.patients for split in splits.values()])
    assert sorted(codes) == list(range(6))
    assert all(len(split.notices) == 1 for split in splits.values())


def test_load_manifest__root_per_split(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_text("Path\na.png\n")
    splits = load_manifest(settings(tmp_path, root="/nih/{split}/"))
    assert splits["val"].files.tolist() == ["/nih/val/a.png"]


def test_present_splits__of_a_folder_and_of_one_csv(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path\na\n")
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(b"Path\nb\n"))
    (tmp_path / "val.csv.old").write_text("Path\nb\n")
    (tmp_path / "other.csv").write_text("Path,Split\na,val\nb,Train\n")
    assert present_splits(settings(tmp_path)) == ("train", "test")
    assert present_splits(settings(tmp_path / "other.csv")) == ("train", "val")
    assert present_splits(settings(tmp_path / "absent")) == ("train", "val", "test")  # for load_manifest to refuse


def test_load_manifest__one_csv(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text("Path,Split\na,train\nb,VAL\nc,test\nd,Train\n")
    splits = load_manifest(settings(file))
    assert {name: split.rows.tolist() for name, split in splits.items()} == {"train": [2, 5], "val": [3], "test": [4]}
    assert splits["train"].files.tolist() == ["images/a", "images/d"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Path,Split\na,train\nb,valid\n", "row 3: Split must be train, val or test"),
        ("Path,Split\na,train\nb,\n", "row 3: Split must be"),
        ("Path,Split\na,train\nb,val\n", "no row has the Split test"),
        ("Path,Spilt\na,train\nb,val\n", "did you mean 'Spilt'"),
        ("Path,Split\na,train\na,val\nb,test\n", "row 3: the same Path as row 2"),
    ],
)
def test_load_manifest__one_csv_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "all.csv"
    file.write_text(text)
    with pytest.raises(ManifestError, match=re.escape(part)):
        load_manifest(settings(file))


def test_load_manifest__one_csv_same_path_per_split(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text("Path,Split\na,train\na,val\na,test\n")
    assert load_manifest(settings(file, root="x/{split}"))["test"].files.tolist() == ["x/test/a"]


def test_load_manifest__split_missing(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path\na\n")
    with pytest.raises(ManifestError, match=re.escape("has no val.csv; it contains: train.csv")):
        load_manifest(settings(tmp_path))
    with pytest.raises(ManifestError, match="does not exist"):
        load_manifest(settings(tmp_path / "absent"))


def test_load_manifest__compressed(tmp_path: Path) -> None:
    write_three(tmp_path)
    plain = load_manifest(settings(tmp_path))
    for file in list(tmp_path.iterdir()):
        file.with_suffix(".csv.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = load_manifest(settings(tmp_path))
    assert [packed[name].files.tolist() for name in packed] == [plain[name].files.tolist() for name in plain]
    (tmp_path / "val.csv").write_text("Path\na\n")
    with pytest.raises(ManifestError, match=re.escape("has both val.csv and val.csv.gz; remove one")):
        load_manifest(settings(tmp_path))
    (tmp_path / "val.csv").unlink()
    (tmp_path / "val.csv.gz").write_bytes(gzip.compress(b"Path\na\n")[:-5])
    with pytest.raises(ManifestError, match=r"val\.csv\.gz: cannot be decompressed"):
        load_manifest(settings(tmp_path))
    whole = tmp_path / "all.csv.gz"
    whole.write_bytes(gzip.compress(b"Path,Split\na,train\nb,val\nc,test\n"))
    assert len(load_manifest(settings(whole))["test"]) == 1


def test_read_table__text_and_labels_by_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Name;A\nx;1.0\n\ny;-1\nz;\n")
    table, labels = read_table(tmp_path / "t.csv", ["A"])
    assert table.index.tolist() == labels.index.tolist() == [2, 4, 5]
    assert table["A"].tolist() == ["1.0", "-1", ""]
    np.testing.assert_array_equal(labels["A"], [1, -1, np.nan])
    assert read_table(tmp_path / "t.csv")[1].shape == (3, 0)
    with pytest.raises(ManifestError, match="no column 'B'"):
        read_table(tmp_path / "t.csv", ["B"])


def test_select__mask_and_positions(tmp_path: Path) -> None:
    split = train(tmp_path, PLAIN, ("Finding",))
    by_mask = split.select(np.array([False, True, False, True]))
    by_position = split.select(np.array([3, 1]))
    assert by_mask.rows.tolist() == [3, 5]
    assert by_position.rows.tolist() == [5, 3]
    for part in (by_mask, by_position):
        assert len(part) == len(part.table) == len(part.labels) == len(part.files) == 2
        assert [Path(file).name for file in part.files] == part.table["Path"].tolist()


def test_select_where__keeps_the_rows_that_match(tmp_path: Path) -> None:
    split = train(tmp_path, 'Path,View,A\na,"L,R",1\nb,PA,0\n\nc,"L,R",0\nd,"L,R",1\n', ("A",))
    selected = select_where(split, "View == 'L,R' and A == 1")
    assert selected.rows.tolist() == [2, 6]
    assert selected.labels.tolist() == [[1], [1]]
    with pytest.raises(ManifestError, match="none of the 4 train rows") as caught:
        select_where(split, "A == 7")
    assert "train.csv" in str(caught.value)
    with pytest.raises(ManifestError, match="row 5"):
        select_where(split.select(np.array([2, 3])), "View > 3")


def test_select_where__sees_cells_before_the_label_policy(tmp_path: Path) -> None:
    policy = {"A": {"uncertain": "one", "missing": "zero"}}
    split = train(tmp_path, "Path,A\na,1\nb,-1\nc,\nd,0\n", policy)
    assert select_where(split, "A == 1").rows.tolist() == [2]
    assert select_where(split, "A == 0").rows.tolist() == [5]


def test_load_manifest__holds_no_python_string_that_workers_touch(tmp_path: Path) -> None:
    """Reading a Python string writes its reference count, and so copies memory in each worker; see benchmarks."""
    split = train(tmp_path, PLAIN, ("Finding",))
    for part in (split, split.select(np.array([2, 0])), split.select(np.array([True, False, True, True]))):
        assert part.files.dtype == np.dtypes.StringDType()
        assert not any(array.dtype.hasobject for array in (part.rows, part.frames, part.patients, part.labels))
    assert type(split.files[0]) is str
    assert split.files[2] == "images/c.png"


@pytest.mark.slow
def test_load_manifest__a_million_rows(tmp_path: Path) -> None:
    rows = "".join(f"p{number // 3}/s/{number}.jpg,{number // 3:08d},{number % 2}\n" for number in range(1_000_000))
    (tmp_path / "train.csv").write_text(f"Path,PatientID,A\n{rows}")
    split = load_manifest(settings(tmp_path, ("A",)), ["train"])["train"]
    assert len(split) == 1_000_000
    assert split.patients[-1] == 333_333


def test_load_manifest__a_decimal_comma_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "Path;A\na;1,0\n", ("A",))
    assert "row 2" in message
    assert "decimal comma: write numbers with a point" in message


@pytest.mark.parametrize("column", ["Patient ID", "patient_id", "PatientId", "subject_id", "MRN"])
def test_load_manifest__patients_under_another_name(tmp_path: Path, column: str) -> None:
    message = refusal(tmp_path, f"Path,{column},A\na,1,0\n", ("A",))
    assert f"the column '{column}' seems to identify the patient;" in message
    assert f"set 'data.columns={{PatientID: \"{column}\"}}'." in message
    refusal(tmp_path, f"Path,{column},PatientID\na,1,\n")  # a column of blanks names nobody
    split = train(tmp_path, f"Path,{column},PatientID\na,1,2\nb,1,3\n")
    assert split.patients.tolist() == [0, 1]
    assert split.notices == ()
    assert len(train(tmp_path, f"Path,{column}\na,1\n", (column,))) == 1  # a label is no id


def test_load_manifest__patients_under_another_name_in_one_split_alone(tmp_path: Path) -> None:
    write_three(tmp_path)
    (tmp_path / "test.csv").write_text("Path,patient_id\ntest/0.png,1\n")
    with pytest.raises(ManifestError, match=r"test\.csv: no row has a PatientID, but the column 'patient_id'"):
        load_manifest(settings(tmp_path))


def test_load_manifest__patients_under_another_name_where_they_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path,Patient ID\na,1\nb,1\n")
    split = load_manifest(settings(tmp_path), ["train"], patients_matter=False)["train"]
    assert split.notices == ("train: 'Patient ID' is not read as PatientID; every row counts as its own patient",)


def test_load_manifest__ids_that_differ_by_padding_or_a_point(tmp_path: Path) -> None:
    for name, ids in {"train": ["P1 ", "012", "7.0"], "val": [" P1", "12"], "test": ["\u00a0P1", "7", "8.0"]}.items():
        rows = "".join(f"{name}/{number}.png,{patient}\n" for number, patient in enumerate(ids))
        (tmp_path / f"{name}.csv").write_text(f"Path,PatientID\n{rows}")
    splits = load_manifest(settings(tmp_path))
    assert [split.patients.tolist() for split in splits.values()] == [[0, 1, 2], [0, 3], [0, 4, 5]]
    (notice,) = splits["train"].notices
    assert notice.startswith("train: 1 rows have a PatientID ending in .0")
    assert splits["val"].notices == splits["test"].notices == ()


@pytest.mark.parametrize("column", ["frame", "Frame Number", "page"])
def test_load_manifest__frames_under_another_name(tmp_path: Path, column: str) -> None:
    message = refusal(tmp_path, f"Path,{column}\na,1\na,2\n")
    assert f"did you mean '{column}'? Then set 'data.columns={{Frame: \"{column}\"}}'" in message


@pytest.mark.parametrize("column", ["split", "Set Id", "subset"])
def test_load_manifest__split_under_another_name(tmp_path: Path, column: str) -> None:
    (tmp_path / "all.csv").write_text(f"Path,{column}\na,train\n")
    with pytest.raises(ManifestError, match=f"mean '{column}'. Then set 'data.columns={{Split: \"{column}\"}}'"):
        load_manifest(settings(tmp_path / "all.csv"), ["train"])


def test_load_manifest__paths_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"Path\np\\a.png\n{tmp_path}/images/p/b.png\n")
    split = load_manifest(settings(tmp_path, root=f"{tmp_path}/images"), ["train"])["train"]
    assert split.table["Path"].tolist() == ["p/a.png", "p/b.png"]
    assert split.files.tolist() == [f"{tmp_path}/images/p/a.png", f"{tmp_path}/images/p/b.png"]
    (tmp_path / "train.csv").write_text(f"Path\np\\a.png\n{tmp_path}/images/p/a.png\n")
    with pytest.raises(ManifestError, match="row 3: the same Path as row 2"):
        load_manifest(settings(tmp_path, root=f"{tmp_path}/images"), ["train"])


def test_load_manifest__jsonl_and_tsv_in_a_folder_or_alone(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("Path\tA\na.png\t1\n")
    (tmp_path / "val.jsonl").write_text('{"Path": "b.png", "A": false}\n')
    splits = load_manifest(settings(tmp_path, ("A",)), ("train", "val"))
    assert [split.labels.tolist() for split in splits.values()] == [[[1]], [[0]]]
    assert present_splits(settings(tmp_path)) == ("train", "val")
    (tmp_path / "train.csv").write_text("Path\na\n")
    with pytest.raises(ManifestError, match=re.escape("has both train.csv and train.tsv")):
        load_manifest(settings(tmp_path), ["train"])
    (tmp_path / "all.jsonl").write_text('{"Path": "a", "Split": "val"}\n{"Path": "b", "Split": "train"}\n')
    assert load_manifest(settings(tmp_path / "all.jsonl"), ["train"])["train"].rows.tolist() == [2]


def test_load_manifest__what_to_do_without_a_split(tmp_path: Path) -> None:
    (tmp_path / "my images").mkdir()
    with pytest.raises(ManifestError, match=re.escape(f"`medmoco init '{tmp_path}/my images'` writes a manifest")):
        load_manifest(settings(tmp_path / "my images"), ["train"])
    with pytest.raises(ManifestError, match="`medmoco init FOLDER`"):
        load_manifest(settings(tmp_path / "absent"), ["train"])
    (tmp_path / "train.csv").write_text("Path,A\na,1\n")
    for labels in ((), ("A",)):
        with pytest.raises(ManifestError) as caught:
            load_manifest(settings(tmp_path, labels), ("train", "val"))
        assert f"`medmoco split --csv {tmp_path}/train.csv --out NEW` draws splits by patient" in str(caught.value)
        assert ("labels are scored on val" in str(caught.value)) == bool(labels)
    (tmp_path / "all.csv").write_text("Path,A,Split\na,1,train\n")
    with pytest.raises(ManifestError, match=r"no row has the Split val.*;\nlabels are scored on val"):
        load_manifest(settings(tmp_path / "all.csv", ("A",)), ("train", "val"))
    (tmp_path / "all.csv").write_text("Path,A\na,1\n")
    with pytest.raises(ManifestError, match=r"no column 'Split'; to draw .*`medmoco split --csv all.csv --out FOLDER`"):
        load_manifest(settings(tmp_path / "all.csv"), ["train"])
