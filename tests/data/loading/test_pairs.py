from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medmoco import config
from medmoco.config import MethodSettings, PositiveSettings
from medmoco.data.loading.pairs import Partners, ViewSpec, partner_notices, plan_of
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import ManifestError

ROWS = """Path,PatientID,StudyID,Laterality
0.png,A,1,L
1.png,A,1,R
2.png,A,2,L
3.png,A,2,
4.png,B,1,L
5.png,B,1,L
6.png,C,9,R
"""


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return make_split(tmp_path, ROWS)


def make_split(folder: Path, text: str) -> Split:
    (folder / "train.csv").write_text(text)
    for line in text.splitlines()[1:]:
        (folder / line.split(",")[0]).touch()
    settings = config.load(None, ["out=run", f"data.manifest={folder}", f"data.root={folder}"])
    return load_manifest(settings.data, ["train"])["train"]


def partners_by_loop(split: Split, agree: tuple[str, ...], differ: tuple[str, ...]) -> dict[int, set[int]]:
    records = split.table.astype(str).to_dict("records")

    def fits(own: dict[str, str], other: dict[str, str]) -> bool:
        if own is other or own["PatientID"] != other["PatientID"]:
            return False
        alike = all(own[column] == other[column] != "" for column in agree)
        return alike and all("" != own[column] != other[column] != "" for column in differ)

    return {i: {j for j, other in enumerate(records) if fits(own, other)} for i, own in enumerate(records)}


@pytest.mark.parametrize(
    ("agree", "differ"),
    [((), ()), (("StudyID",), ()), ((), ("Laterality",)), (("Laterality",), ("StudyID",)),
     ((), ("StudyID", "Laterality"))],
)  # fmt: skip
def test_partners__are_those_of_a_plain_loop(split: Split, agree: tuple[str, ...], differ: tuple[str, ...]) -> None:
    partners = Partners(split, PositiveSettings(image="patient", agree=agree, differ=differ), 5)
    expected = partners_by_loop(split, agree, differ)
    met: dict[int, set[int]] = {sample: set() for sample in range(7)}
    for epoch in range(40):
        for sample, partner in enumerate(partners.of(np.arange(7), epoch).tolist()):
            met[sample].add(partner)
    assert met == {sample: others or {sample} for sample, others in expected.items()}
    assert partners.alone() == sum(not others for others in expected.values())


def test_partners__all_that_fit_are_as_likely(split: Split) -> None:
    partners = Partners(split, PositiveSettings(image="patient"), 0)
    counts = Counter(int(partners.of(np.array([1]), epoch)[0]) for epoch in range(3000))
    assert set(counts) == {0, 2, 3}
    assert all(900 < count < 1100 for count in counts.values())


def test_partners__probability_is_how_often_there_is_one(split: Split) -> None:
    partners = Partners(split, PositiveSettings(image="patient", probability=0.25), 0)
    counts = Counter(int(partners.of(np.array([1]), epoch)[0]) for epoch in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    assert 2900 < counts[1] < 3100
    assert all(270 < counts[other] < 400 for other in (0, 2, 3))


def test_partners__depend_on_seed_epoch_and_sample_alone(split: Split) -> None:
    positives = PositiveSettings(image="patient")
    every, some = np.arange(7), np.array([5, 0, 3])
    for epoch in range(5):
        whole = Partners(split, positives, 1).of(every, epoch)
        np.testing.assert_array_equal(Partners(split, positives, 1).of(some, epoch), whole[some])
    several = [Partners(split, positives, seed).of(every, 0).tolist() for seed in range(9)]
    assert len({tuple(found) for found in several}) > 1


def test_partners__alone_counts_over_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmoco.data.loading.pairs._PAIRS_AT_A_TIME", 5)
    lines = [f"{number}.png,{patient}" for number, patient in enumerate("AABBBCDEEEEEEEEF")]
    split = make_split(tmp_path, "Path,PatientID\n" + "\n".join(lines) + "\n")
    assert Partners(split, PositiveSettings(image="patient"), 0).alone() == 3


def test_partner_notices__count_who_falls_back_and_refuse_what_has_no_effect(split: Split) -> None:
    assert partner_notices(split, PositiveSettings()) == ()
    (said,) = partner_notices(split, PositiveSettings(image="patient"))
    assert said == "train: 1 of 7 rows have no other suitable image of their patient; their key is of their own image"
    with pytest.raises(ManifestError, match=r"^train\.csv: no train row has another image of its patient"):
        partner_notices(split, PositiveSettings(image="patient", agree=("Path",)))
    with pytest.raises(
        ManifestError, match=r"has no column ViewPosition, which positives\.differ needs; it has: Path, "
    ):
        partner_notices(split, PositiveSettings(image="patient", differ=("ViewPosition",)))


def test_plan_of__what_is_compared() -> None:
    def views(**method: object) -> tuple[list[tuple[ViewSpec, ViewSpec]], int]:
        plan = plan_of(MethodSettings.model_validate(method))
        directions = zip(plan.queries, plan.keys, strict=True)
        return [(plan.views[query], plan.views[key]) for query, key in directions], len(plan.views)

    assert views() == ([((0, False), (1, True))], 2)
    assert views(batch_norm="joined") == ([((0, False), (1, False))], 2)
    both = {"symmetric": True, "negatives": "other_images"}
    assert views(**both) == ([((0, False), (1, True)), ((1, False), (0, True))], 4)
    joined = [((0, False), (1, False)), ((1, False), (0, False))]
    assert views(**both, batch_norm="joined") == (joined, 2)
