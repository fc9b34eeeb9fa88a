from __future__ import annotations

from medmoco.reporting.external import external_section
from medmoco.reporting.runs import Run
from tests.helpers.words import missing_of, tables_of, words_of


def test_external_section__the_drop(run: Run, other_run: Run) -> None:
    table = tables_of(external_section([run, other_run]))[0]
    rows = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table.rows]
    assert [row[:2] for row in rows] == [
        ["Pneumonia", "cxr-1"], ["Viral", "cxr-1"], ["Pneumonia", "cxr-2"], ["Viral", "cxr-2"],
    ]  # fmt: skip
    assert rows[0][2:] == [
        "0.870 (0.820 to 0.910)", "200", "0.800 (0.740 to 0.850)", "200", "+0.070 (+0.010 to +0.130)",
    ]  # fmt: skip


def test_external_section__its_own_operating_points_and_subgroups(run: Run) -> None:
    section = external_section([run])
    assert [part.title for part in section.sections] == [
        "Operating points, Pneumonia", "Operating points, Viral", "Subgroups, Pneumonia", "Subgroups, Viral",
    ]  # fmt: skip
    assert "hidden (fewer than 20 patients)" in words_of(section)


def test_external_section__missing(bare_run: Run) -> None:
    assert "medmoco external" in missing_of(external_section([bare_run]))[0]
