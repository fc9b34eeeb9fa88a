from __future__ import annotations

import numpy as np
import pytest

from medmoco.detection.learning import Detections
from medmoco.detection.matching import OVERLAPS, match
from medmoco.detection.readers import overlap
from tests.helpers.rectangles import made_up


def plain_hits(truth: np.ndarray, found: np.ndarray, scores: np.ndarray, least: float) -> list[bool]:
    """Match by a plain loop: the highest score first takes the free box that it overlaps most."""
    free, hits = set(range(len(truth))), [False] * len(found)
    for number in np.argsort(-scores, kind="stable"):
        overlaps = {box: overlap(found[number], truth[box]) for box in free}
        good = {box: value for box, value in overlaps.items() if value >= least}
        if good:
            free.remove(max(good, key=lambda box: (good[box], box)))
            hits[number] = True
    return hits


@pytest.mark.parametrize("seed", [0, 1])
def test_match__equals_a_plain_loop(seed: int) -> None:
    annotated, found = made_up(seed)
    for label, matches in enumerate(match(annotated, found, 2)):
        assert (np.diff(matches.scores) <= 0).all()
        for image in range(len(matches.boxes)):
            own = annotated.corners[(annotated.images == image) & (annotated.labels == label)]
            assert matches.boxes[image] == len(own)
            those = (found.images == image) & (found.labels == label)
            for place, least in enumerate(OVERLAPS):
                expected = plain_hits(own, found.corners[those], found.scores[those], least)
                ours = matches.hits[place][matches.images == image]
                order = np.argsort(-found.scores[those], kind="stable")
                assert ours.tolist() == np.array(expected, bool)[order].tolist()


def test_match__nothing_found() -> None:
    annotated, _ = made_up(0)
    empty = Detections(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
    matches = match(annotated, empty, 2)
    assert [each.hits.shape for each in matches] == [(10, 0), (10, 0)]
    assert sum(each.boxes.sum() for each in matches) == 30


def test_match__says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    match(*made_up(0), 2)
    assert capsys.readouterr().out == ""
