from __future__ import annotations

import numpy as np

from medmoco.data.order import ORDER, VIEW, StepOrder, hashed, permutation, substitute, uniform

MASK = 2**64 - 1


def splitmix_oracle(*keys: int) -> int:
    """SplitMix64 of the keys, one after the other, in plain integers."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    state = 0
    for key in keys:
        state = mix(((state ^ mix((key + 0x9E3779B97F4A7C15) & MASK)) + 0x9E3779B97F4A7C15) & MASK)
    return state


def test_hashed__equals_plain_integer_arithmetic() -> None:
    for keys in [(0,), (1, 2), (7, VIEW, 3, 123456789, 1, 20)]:
        assert int(hashed(*keys)[0]) == splitmix_oracle(*keys)


def test_hashed__broadcasts_over_samples() -> None:
    samples = np.array([5, 0, 99])
    assert hashed(1, samples, 2).tolist() == [splitmix_oracle(1, int(s), 2) for s in samples]


def test_uniform__is_uniform_and_uncorrelated_between_neighbouring_keys() -> None:
    a, b = uniform(0, VIEW, 0, np.arange(100_000), 0, 1), uniform(0, VIEW, 0, np.arange(100_000), 0, 2)
    counts = np.histogram(a, 20, (0, 1))[0]
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8  # 99.9 % quantile at 19 degrees of freedom
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.01
    assert a.min() >= 0
    assert a.max() < 1


def test_permutation__holds_every_number_once_and_differs_by_key() -> None:
    first, second = (permutation(0, ORDER, epoch, length=1000) for epoch in range(2))
    assert sorted(first) == list(range(1000))
    assert (first != second).mean() > 0.9


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
