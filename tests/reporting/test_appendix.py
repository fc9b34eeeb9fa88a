from __future__ import annotations

import re
from dataclasses import replace

import pytest

from medmoco.reporting.appendix import CHECKLISTS, OPEN, appendix_section
from medmoco.reporting.runs import Run
from tests.helpers.words import tables_of, words_of


def _answers(run: Run, checklist: int) -> dict[str, str]:
    return {row[0]: row[2] for row in tables_of(appendix_section([run]))[checklist].rows}


def test_appendix_section__has_every_item(run: Run) -> None:
    tripod, claim = _answers(run, 0), _answers(run, 1)
    assert len(tripod) == 52  # Source: Collins et al. 2024, 27 items and their parts
    assert {int(re.sub(r"\D", "", item)) for item in tripod} == set(range(1, 28))
    assert list(claim) == [str(number) for number in range(1, 45)]  # Source: Tejani et al. 2024


def test_appendix_section__every_fact_in_the_checklists_is_filled_in(run: Run) -> None:
    answers = [*_answers(run, 0).values(), *_answers(run, 1).values()]
    asked = [fact for fact, answer in zip(CHECKLISTS["fact"], answers, strict=True) if answer == OPEN]
    assert set(asked) == {""}


def test_appendix_section__facts_are_those_of_the_run(run: Run) -> None:
    tripod, claim = _answers(run, 0), _answers(run, 1)
    assert "train 320 images of 160 patients" in tripod["20a"]
    assert "no patient is in two of them" in claim["20"]
    assert "resnet18" in claim["22"]
    assert "Random weights, seed 0" in claim["24"]
    assert "torch 2.14.1" in claim["23"]
    assert "0.800 external, 0.870 internal" in claim["33"]
    assert "specificity of 0.90, 0.95" in tripod["15"]
    assert "platt" in tripod["12f"]
    assert "Sex, Age" in tripod["14"]
    assert "2 training images could not be read" in claim["8"]
    own = next(
        r for r in run.evaluation.scores or []
        if (r.label, r.split, r.method, r.encoder) == ("Viral", "test", "linear", "run")
    )  # fmt: skip
    assert f"Viral {own.auroc:.3f}" in claim["37"]


def test_appendix_section__the_choice_of_a_checkpoint_is_stated(run: Run) -> None:
    assert "The last step of pretraining; the regularisation" in _answers(run, 1)["26"]
    chosen = replace(run, step=800, classifier={"encoder": {"kind": "run", "selected_by": "kNN score on val"}})
    expected = "The step of pretraining with the best kNN AUROC on validation, which ended when"
    assert expected in _answers(chosen, 1)["26"]


@pytest.mark.parametrize("item", ["3a", "5b", "17", "18a", "19", "25", "27c"])
def test_appendix_section__what_a_machine_cannot_know_is_left_open(run: Run, item: str) -> None:
    assert _answers(run, 0)[item] == OPEN


def test_appendix_section__shared_patients_are_not_hidden(run: Run) -> None:
    assert run.splits is not None
    test = replace(run.splits["test"], patients=run.splits["train"].patients[: len(run.splits["test"])])
    changed = replace(run, splits={**run.splits, "test": test})
    assert "100 patients in two of them" in _answers(changed, 0)["12a"]


def test_appendix_section__nothing_is_claimed_of_a_bare_run(bare_run: Run) -> None:
    bare = replace(bare_run, splits=None)
    tripod, claim = _answers(bare, 0), _answers(bare, 1)
    for item in ("7", "12a", "15", "16", "20a", "23a"):
        assert tripod[item] == OPEN
    for item in ("8", "28", "29", "32", "33", "35", "42"):
        assert claim[item] == OPEN
    assert "None" not in claim["29"]


def test_appendix_section__counts_and_sources_are_said(run: Run) -> None:
    words = words_of(appendix_section([run]))
    assert "10.1136/bmj-2023-078378" in words
    assert "10.1148/ryai.240300" in words
    filled = sum(answer != OPEN for answer in _answers(run, 0).values())
    assert f"TRIPOD+AI for cxr-1: {filled} items of 52 filled in" in words
