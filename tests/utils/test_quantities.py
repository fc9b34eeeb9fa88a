from __future__ import annotations

import pytest

from medmoco.utils.quantities import power_of_two, size_words


def test_power_of_two__is_at_most_the_number_but_1_at_least() -> None:
    assert [power_of_two(most) for most in (-1, 0, 1, 2, 3, 4, 63, 64)] == [1, 1, 1, 2, 2, 4, 32, 64]


@pytest.mark.parametrize(
    ("count", "words"), [(4e5, "0 MB"), (8.5e8, "850 MB"), (1.55e9, "1.6 GB"), (2.4e10, "24 GB"), (5e12, "5,000 GB")]
)
def test_size_words__have_two_digits(count: float, words: str) -> None:
    assert size_words(count) == words
