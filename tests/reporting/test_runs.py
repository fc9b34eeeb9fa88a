from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from medmoco.errors import CheckpointError, SettingsError
from medmoco.reporting.runs import Run, read_run
from tests.helpers.made_runs import LABELS, make_run


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may harm."""
    for name in ("cxr-1", "cxr-1-check"):
        shutil.copytree(run_folder.with_name(name), tmp_path / name)
    return tmp_path / "cxr-1"


def test_read_run__finds_everything(run: Run) -> None:
    assert (run.name, run.state, run.step, run.is_finetuned) == ("cxr-1", "done", 1000, False)
    assert run.splits is not None
    assert {name: len(split) for name, split in run.splits.items()} == {"train": 320, "val": 120, "test": 200}
    assert run.quarantine == {"file cut off": 2}
    assert run.faults == {("warning", "constant image"): 1}
    assert run.audit is not None
    assert run.audit.startswith("560 rows")
    assert all((run.evaluation.scores, run.evaluation.operating, run.curve, run.external, run.card, run.classifier))
    assert run.ledger is not None
    assert len(run.ledger) == 2
    assert run.external_scores.operating is not None


def test_read_run__the_best_checkpoint_is_that_of_the_last_step_in_its_folder(folder: Path) -> None:
    assert read_run(folder).best_step is None
    (folder / "best").mkdir()
    for name in ("step-000000400.pt", "step-000000600.pt", "step-000000600.pt.sha256", "step-000000800.pt.tmp"):
        (folder / "best" / name).touch()
    assert read_run(folder).best_step == 600


def test_read_run__what_is_not_there_is_none(bare_run: Run) -> None:
    assert bare_run.state == "unknown"
    nothing = (bare_run.evaluation.scores, bare_run.evaluation.predictions, bare_run.curve, bare_run.external)
    assert nothing == (None,) * 4
    assert (bare_run.ledger, bare_run.card, bare_run.audit, bare_run.classifier) == (None,) * 4
    assert (bare_run.metrics, bare_run.quarantine) == ([], {})


def test_read_run__finetuned(tmp_path: Path) -> None:
    assert read_run(make_run(tmp_path / "tuned", finetuned=True)).is_finetuned


@pytest.mark.parametrize("missing", ["config.yaml", "environment.json"])
def test_read_run__other_folders_are_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(SettingsError, match="not a run folder"):
        read_run(folder)


def test_read_run__predictions_are_the_first_draw_of_the_split_shown(folder: Path) -> None:
    file = folder / "evaluation" / "predictions.csv"
    lines = file.read_text().splitlines()
    again = [line.replace(",0,", ",1,", 1) for line in lines[1:3]]
    file.write_text("\n".join([*lines, *again]) + "\n")
    table = read_run(folder).evaluation.predictions
    assert table is not None
    assert set(table["split"]) == {"test"}
    assert len(table) == 200 * 2 * 2 * 3
    assert "row" not in table


def test_read_run__without_a_test_split_validation_is_shown(folder: Path) -> None:
    file = folder / "evaluation" / "scores.json"
    file.write_text(json.dumps([record for record in json.loads(file.read_text()) if record["split"] == "val"]))
    found = read_run(folder).evaluation
    assert found.split == "val"
    assert found.predictions is not None
    assert set(found.predictions["split"]) == {"val"}


def test_read_run__a_cut_off_last_line_of_metrics_is_forgiven(folder: Path) -> None:
    before = len(read_run(folder).metrics)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1010, "lo')
    assert len(read_run(folder).metrics) == before


COLUMNS = "split,label,method,encoder,draw,target,score"
HARM: list[tuple[str, Any, str]] = [
    ("status.json", "{", "not JSON"),
    ("status.json", "[]", "not contain an object"),
    ("environment.json", b"\xff\xfe", "not text"),
    ("config.yaml", "a: [", "not YAML"),
    ("config.yaml", "!!python/object/apply:os.system [true]", "not YAML"),
    ("config.yaml", "- 1", "not contain settings"),
    ("metrics.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n', "not JSON"),
    ("ledger.jsonl", "[1]\n", "line 1 is damaged"),
    ("quarantine.csv", "a,b\n1,2\n", "lacks a column"),
    ("evaluation/scores.json", '[{"label": NaN}]', "0, label: Input should be a valid string"),
    ("evaluation/scores.json", "[" * 100_000, "Invalid JSON"),
    ("evaluation/scores.json", "{}", "should be a valid array"),
    ("evaluation/scores.json", "[3]", "0: Input should be an object"),
    ("evaluation/operating.json", '[{"label": "Viral"}]', "0, split: Field required"),
    ("evaluation/predictions.csv", "split,row\ntest,2\n", "cannot be read"),
    ("evaluation/predictions.csv", f"{COLUMNS}\ntest,V,linear,run,0,2,1\n", "target"),
    (
        "evaluation/predictions.csv",
        f"{COLUMNS}\ntest,V,linear,run,0,1,inf\n",
        "score",
    ),
    ("curve/curve.json", "null", "should be a valid array"),
    ("external/external.json", '{"Viral": {"internal": 1}}', "Viral, internal: Input should be an object"),
]


@pytest.mark.parametrize(("name", "content", "says"), HARM)
def test_read_run__a_damaged_file_is_named(folder: Path, name: str, content: Any, says: str) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=says) as caught:
        read_run(folder)
    assert Path(name).name in str(caught.value)
    assert str(folder.parent) not in str(caught.value)


@pytest.mark.parametrize("key", ["auroc", "auroc_low", "n"])
def test_read_run__a_number_that_is_text_is_named(folder: Path, key: str) -> None:
    file = folder / "evaluation" / "scores.json"
    records = json.loads(file.read_text())
    records[3][key] = "<b>0.9</b>"
    file.write_text(json.dumps(records))
    with pytest.raises(CheckpointError, match=f"scores.json is damaged: 3, {key}: Input should be a valid"):
        read_run(folder)


def test_read_run__a_bin_without_counts_is_named(folder: Path) -> None:
    file = folder / "evaluation" / "calibration.json"
    records = json.loads(file.read_text())
    del records[0]["after"]["bins"][0]["observed"]
    file.write_text(json.dumps(records))
    with pytest.raises(CheckpointError, match="0, after, bins, 0, observed: Field required"):
        read_run(folder)


# ---- places and ids ----


def test_read_run__settings_name_no_place(folder: Path) -> None:
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["data"] |= {"pack": "/srv/packs/cxr", "pack_cache": "C:\\cache"}
    tree["detection"] = {"boxes": "doe-jane.csv"}
    tree["model"] |= {"backbone": "monai/densenet121", "init": "secret.pth"}
    tree["later"] = {"encoder": "cxr-0", "list": "~/x", "note": "a/b"}
    tree["evaluate"]["where"] = "PatientID == 00123"
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    run = read_run(folder)
    said = json.dumps(run.settings)
    for secret in (str(folder.parent), "srv", "cache", "secret", "cxr-0", "~", "a/b", "00123", "doe-jane"):
        assert secret not in said.replace("data.pack_cache", "")
    assert run.settings["model.backbone"] == "monai/densenet121"
    assert run.settings["evaluate.where"] == "some, chosen by id"
    assert run.settings["train.epochs"] == 200
    assert run.has_weights


def test_read_run__subgroups_by_id_are_left_out(folder: Path, run_folder: Path) -> None:
    file = folder / "evaluation" / "subgroups.json"
    records = json.loads(file.read_text())
    file.write_text(json.dumps([*records, records[0] | {"column": "PatientID", "group": "00123"}]))
    found = read_run(folder).evaluation.subgroups
    assert found == list(read_run(run_folder).evaluation.subgroups or ())


def test_read_run__a_manifest_that_has_changed_is_not_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    table = tmp_path / "run-data" / "train.csv"
    table.write_text(table.read_text() + "images/new.png,patient-x,F,030Y,1,0\n")
    assert read_run(folder).splits is None
    shutil.rmtree(table.parent)
    assert read_run(folder).splits is None


def test_read_run__labels_with_slashes_stay(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", labels=("Mass/Nodule", LABELS[1])))
    assert run.settings["data.labels.Mass/Nodule.uncertain"] == "ignore"
    assert run.splits is not None
    assert run.splits["train"].label_names == ("Mass/Nodule", "Viral")
