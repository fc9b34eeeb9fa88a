from __future__ import annotations

import numpy as np

from medmoco.data.loading.sampler import StepOrder, substitute


def test_step_order__covers_an_epoch_without_repeats_and_leaves_out_the_rest() -> None:
    order = StepOrder(seed=3, samples=23, batch_size=5, epochs=3)
    keys = list(order.from_step(0))
    assert order.steps_per_epoch == 4
    assert [key.step for key in keys] == list(range(12))
    left_out = []
    for epoch in range(3):
        seen = np.concatenate([key.samples for key in keys if key.epoch == epoch])
        assert len(set(seen)) == 20
        left_out.append(frozenset(range(23)) - set(seen))
    assert len(set(left_out)) > 1


def test_step_order__from_the_middle_equals_the_whole() -> None:
    order = StepOrder(seed=3, samples=23, batch_size=5, epochs=3)
    whole = list(order.from_step(0))
    for start in (0, 1, 3, 4, 7, 11):
        resumed = list(order.from_step(start))
        assert [key.step for key in resumed] == list(range(start, 12))
        for key, expected in zip(resumed, whole[start:], strict=True):
            np.testing.assert_array_equal(key.samples, expected.samples)


def test_substitute__is_any_sample_and_another_for_every_key() -> None:
    drawn = [substitute(0, 1, 2, attempt, 5) for attempt in range(1, 400)]
    assert drawn == [substitute(0, 1, 2, attempt, 5) for attempt in range(1, 400)]
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 50
    keys = [(0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4)]
    assert len({substitute(*key, 10**9) for key in keys}) == len(keys)
