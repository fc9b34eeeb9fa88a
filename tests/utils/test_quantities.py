from __future__ import annotations

from medmoco.utils.quantities import power_of_two


def test_power_of_two__is_at_most_the_number_but_1_at_least() -> None:
    assert [power_of_two(most) for most in (-1, 0, 1, 2, 3, 4, 63, 64)] == [1, 1, 1, 2, 2, 4, 32, 64]
