from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from medmoco.evaluation.records import EncoderRecord, Leakage, Overlap, Record
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import (
    encoder_name,
    labels_of,
    method_of,
    operating_section,
    scores_section,
    subgroups_section,
)  # fmt: skip
from tests.helpers.words import missing_of, plots_of, tables_of, words_of


def _changed(run: Run, file: str, records: Sequence[Record] | None) -> Run:
    return replace(run, evaluation=replace(run.evaluation, **{file: records}))  # type: ignore[arg-type]


def _with(records: Sequence[Record] | None, **values: Any) -> list[Any]:
    return [record.model_copy(update=values) for record in records or ()]


def test_encoder_name__of_one_run_and_of_several(run: Run) -> None:
    assert encoder_name(run, "run", [run], is_primary=True) == "cxr-1"
    assert encoder_name(run, "run", [run]) == "run"
    assert encoder_name(run, "mine", [run], is_primary=True) == "mine"
    assert encoder_name(run, "mine", [run, run], is_primary=True) == "mine (cxr-1)"
    assert encoder_name(run, "pixels", [run]) == "pixels"
    assert encoder_name(run, "pixels", [run, run]) == "pixels (cxr-1)"
    assert encoder_name(run, "/srv/weights/imagenet.pth", [run]) == "imagenet.pth"


def test_scores_section__controls_with_a_preprocessing_of_their_own(run: Run) -> None:
    own = "224 x 224 pixels, mean 0.498, std 0.502"
    records = [
        record.model_copy(update={"preprocessing": own}) if record.encoder == "pixels" else record
        for record in run.evaluation.scores or ()
    ]
    changed = _changed(run, "scores", records)
    assert encoder_name(changed, "pixels", [changed]) == "pixels (224 x 224 pixels)"
    assert encoder_name(changed, "untrained", [changed]) == "untrained"
    words = words_of(scores_section([changed]))
    assert f"pixels (cxr-1): images of {own}." in words
    assert "pixels (224 x 224 pixels), linear probe" in words
    assert "pixels, linear probe" in words_of(scores_section([run]))


def test_labels_of__mean_last_and_only_of_several() -> None:
    def labels(*names: str) -> list[str]:
        return labels_of([EncoderRecord(label=name, split="test", encoder="run") for name in names])

    assert labels("macro", "b", "a", "b") == ["b", "a", "macro"]
    assert labels("a", "macro") == ["a"]


def test_method_of__the_linear_probe_if_there_is_one() -> None:
    assert method_of(["knn", "linear"]) == "linear"
    assert method_of(["finetune"]) == "finetune"
    assert method_of([]) == "linear"


# ---- scores ----


def test_scores_section__numbers_are_those_of_the_file(run: Run) -> None:
    assert run.evaluation.scores is not None
    section = scores_section([run])
    viral = next(part for part in section.sections if part.title == "Viral, test")
    (table,) = [block for block in viral.blocks if hasattr(block, "rows")]
    record = next(
        r for r in run.evaluation.scores
        if (r.label, r.split, r.method, r.encoder) == ("Viral", "test", "linear", "run")
    )  # fmt: skip
    first = table.rows[0][2].replace("\N{NO-BREAK SPACE}", " ")
    assert first == f"{record.auroc:.3f} ({record.auroc_low:.3f} to {record.auroc_high:.3f})"
    assert "200 images of 100 patients" in table.caption


def test_scores_section__differences_stand_with_their_control(run: Run) -> None:
    assert run.evaluation.differences is not None
    difference = next(
        d for d in run.evaluation.differences
        if (d.label, d.split, d.method, d.control) == ("Viral", "test", "linear", "pixels")
    )  # fmt: skip
    tables = [table for table in tables_of(scores_section([run])) if table.caption.startswith("Viral on test")]
    rows = {row[0].replace("\N{NO-BREAK SPACE}", " "): row for row in tables[0].rows}
    assert rows["pixels, linear probe"][1].startswith(f"{difference.difference:+.3f}")
    assert rows["pixels, linear probe"][3] == "0.020"
    assert rows["cxr-1, linear probe"][1] == "–"


@pytest.mark.parametrize(("p", "rows"), [(0.04, 0), (0.108, 4)])
def test_scores_section__a_large_p_next_to_an_interval_that_excludes_0_is_explained(
    run: Run, p: float, rows: int
) -> None:
    records = _with(run.evaluation.differences, low=0.01, high=0.2, p=0.01, p_holm=p)
    words = words_of(scores_section([_changed(run, "differences", records)]))
    expected = (
        f"In {rows} rows, the interval excludes 0 although p (Holm) is 0.05 or more. The interval stands for one"
        " comparison alone; p is corrected for all 4 comparisons of the same split"
    )
    assert (expected in words) == bool(rows)
    assert ("although p" in words) == bool(rows)


def test_scores_section__test_comes_first_and_validation_is_folded(run: Run) -> None:
    section = scores_section([run])
    assert [part.title for part in section.sections] == ["Pneumonia, test", "Viral, test", "Split val"]
    assert "optimistic" in words_of(section)
    (forest,) = plots_of(section)
    assert "Viral, cxr-1: " in forest.alt


def test_scores_section__undefined_flags_notes_and_leaks_are_said(run: Run) -> None:
    leakage = Leakage(train=Overlap(patients=3, images=0), pretraining=None)
    records = _with(run.evaluation.scores, leakage=leakage)
    records[-6] = records[-6].model_copy(update={"auroc": None, "undefined": "undefined (no positives)"})
    records[-5] = records[-5].model_copy(update={"flag": "all scores are equal", "note": "did not converge"})
    words = words_of(scores_section([_changed(run, "scores", records)]))
    for text in (
        "undefined (no positives)",
        "all scores are equal",
        "did not converge",
        "shares 3 patients",
    ):
        assert text in words


def test_scores_section__delong_where_there_is_one(run: Run) -> None:
    assert run.evaluation.scores is not None
    assert "DeLong" not in words_of(scores_section([run]))
    records = _with(run.evaluation.scores, delong_low=0.111, delong_high=0.999)
    words = words_of(scores_section([_changed(run, "scores", records)]))
    assert "AUROC, DeLong" in words
    assert "(0.111 to 0.999)" in words


def test_scores_section__older_files_lack_what_came_later(run: Run) -> None:
    assert run.evaluation.scores is not None
    later = ("ap_low", "ap_high", "delong_low", "delong_high", "leakage")
    records = _with(run.evaluation.scores, **dict.fromkeys(later))
    assert plots_of(scores_section([_changed(_changed(run, "scores", records), "differences", None)]))


def test_scores_section__nothing_scored(bare_run: Run) -> None:
    (text,) = missing_of(scores_section([bare_run]))
    assert "medmoco evaluate --encoder bare" in text


def test_scores_section__conditions_on_ids_are_not_repeated(run: Run) -> None:
    records = _with(run.evaluation.scores, where="PatientID == 00123")
    assert "00123" not in words_of(scores_section([_changed(run, "scores", records)]))


# ---- operating points, subgroups, ledger ----


def test_operating_section__numbers_are_those_of_the_file(run: Run) -> None:
    assert run.evaluation.operating is not None
    record = next(r for r in run.evaluation.operating if r.label == "Viral" and r.split == "test")
    table = next(t for t in tables_of(operating_section([run]).sections[1]))
    first = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in table.rows[0]]
    assert first[0] == "cxr-1, 0.90"
    assert first[1].startswith(f"{record.sensitivity:.2f} (")
    assert first[-1] == " / ".join(str(getattr(record, key)) for key in ("tp", "fp", "tn", "fn"))


def test_operating_section__shares_without_cases(run: Run) -> None:
    assert run.evaluation.operating is not None
    records = _with(run.evaluation.operating, ppv=None, ppv_low=None)
    assert tables_of(operating_section([_changed(run, "operating", records)]))[0].rows[0][3] == "–"


def test_operating_section__missing(bare_run: Run) -> None:
    (text,) = missing_of(operating_section([bare_run]))
    assert "operating.json" in text


def test_subgroups_section__hidden_groups_show_no_counts(run: Run) -> None:
    section = subgroups_section([run])
    table = next(table for table in tables_of(section) if "group" in table.head)
    assert list(table.rows[-1]) == ["Age: 80 and above", "hidden (fewer than 20 patients)", "cxr-1", "–", "–", "–"]
    assert {row[2] for row in table.rows} == {"cxr-1"}
    names = [text.get_text() for text in plots_of(section)[0].figure.axes[0].get_yticklabels()]
    assert names == ["Sex", "F", "M", "Age", "18 to 40"]


def test_subgroups_section__two_runs_side_by_side(run: Run, other_run: Run) -> None:
    axes = plots_of(subgroups_section([run, other_run]))[0].figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[:5] == ["Sex", "F, cxr-1", "M, cxr-1", "F, cxr-2", "M, cxr-2"]


def test_subgroups_section__all_hidden(run: Run) -> None:
    assert run.evaluation.subgroups is not None
    hidden = {"auroc": None, "auroc_low": None, "auroc_high": None, "undefined": "hidden (fewer than 20 patients)"}
    records = _with(run.evaluation.subgroups, **hidden)
    section = subgroups_section([_changed(run, "subgroups", records)])
    assert not plots_of(section)
    assert tables_of(section)
