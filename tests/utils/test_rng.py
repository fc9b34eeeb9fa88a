from __future__ import annotations

import numpy as np

from medmoco.utils.rng import ORDER, VIEW, hashed, permutation, uniform

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
