from argparse import ArgumentTypeError

import pytest

from mlserve.arguments import whole_number


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.5", "", "many"])
def test_a_number_outside_the_range_is_refused_with_the_range(text: str) -> None:
    """argparse puts the option's name before it."""
    with pytest.raises(ArgumentTypeError, match=f"{text!r} is not a whole number from 1 to 10"):
        whole_number(1, 10)(text)


def test_both_ends_of_the_range_are_allowed() -> None:
    """And nothing is changed."""
    assert [whole_number(1, 10)(text) for text in ("1", "10")] == [1, 10]
