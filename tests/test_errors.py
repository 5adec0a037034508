import math
from fractions import Fraction

import numpy as np
import pytest

from mllt.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    MlltError,
    check_bool,
    check_choice,
    check_integer,
    check_number,
    did_you_mean,
    name_some,
)


def message_of(check, *arguments, **options) -> str:
    with pytest.raises(ArgumentError) as caught:
        check(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", [ArgumentError, DataError, CheckpointError])
def test_every_error_can_be_caught_as_mllts_and_as_a_value_error(kind):
    assert issubclass(kind, MlltError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("check", "value", "options", "message"),
    [
        (check_integer, "3", {}, "Expected `x` to be a whole number, but got '3'."),
        (check_integer, 0, {"minimum": 1}, "Expected `x` to be a whole number of at least 1, but got 0."),
        (check_integer, 9, {"maximum": 8}, "Expected `x` to be a whole number of at most 8, but got 9."),
        (check_integer, 9, {"minimum": 1, "maximum": 8}, "to be a whole number of at least 1 and of at most 8, but got 9."),
        (check_integer, 1.0, {"minimum": 1}, "Expected `x` to be a whole number of at least 1, but got 1.0."),
        (check_number, "a", {}, "Expected `x` to be a number, but got 'a'."),
        (check_number, -0.1, {"minimum": 0}, "Expected `x` to be a number of at least 0, but got -0.1."),
        (check_number, 0, {"above": 0}, "Expected `x` to be a number above 0, but got 0."),
        (check_number, 1, {"minimum": 0, "below": 1}, "to be a number of at least 0 and below 1, but got 1."),
        (check_number, 1.5, {"above": 0, "maximum": 1}, "but got 1.5."),
        (check_bool, 1, {}, "Expected `x` to be true or false, but got 1."),
        (check_bool, "true", {}, "Expected `x` to be true or false, but got 'true'."),
        (check_bool, None, {}, "Expected `x` to be true or false, but got None."),
    ],
)
def test_a_message_says_what_was_expected_and_what_came(check, value, options, message):
    text = message_of(check, "x", value, **options)
    assert text.endswith(message)
    assert text.startswith("Expected `x` to be ")
    assert "\n" not in text


@pytest.mark.parametrize("value", [True, False, None, "1", [1], 1j, np.bool_(True)])
def test_what_is_no_number(value):
    message_of(check_integer, "x", value)
    message_of(check_number, "x", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    assert repr(value) in message_of(check_number, "x", value)
    assert repr(value) in message_of(check_number, "x", value, 0, 1)
    message_of(check_integer, "x", value)


def test_a_whole_number_too_large_for_a_float_is_refused():
    message_of(check_number, "x", 10**400)


def test_bounds_are_included_or_not_as_named():
    assert [check_integer("x", value, 1, 3) for value in (1, 2, 3)] == [1, 2, 3]
    assert [check_number("x", value, 0, 1) for value in (0, 1)] == [0, 1]
    assert check_number("x", 1e-300, above=0, below=1) == 1e-300
    for value in (0, 1, 2):
        message_of(check_number, "x", value, above=0, below=1)


def test_checked_values_come_back_with_their_type():
    assert type(check_number("x", 3)) is float
    assert type(check_integer("x", -3)) is int
    assert check_bool("x", True) is True
    assert check_bool("x", False) is False
    assert check_choice("x", "b", iter("abc")) == "b"


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2), np.float32(2), Fraction(2), np.float64(2)], ids=repr)
def test_numbers_of_any_type_become_pythons_own(value):
    assert (check_number("x", value, 0), type(check_number("x", value, 0))) == (2.0, float)
    if isinstance(value, np.integer):
        assert (check_integer("x", value, 1, 2), type(check_integer("x", value))) == (2, int)
        message_of(check_integer, "x", value, 3)
    message_of(check_number, "x", value, above=2)


def test_a_choice_lists_all_and_names_the_closest():
    assert message_of(check_choice, "head", "cosin", ["linear", "cosine"]) == (
        "Expected `head` to be one of linear, cosine, but got 'cosin'. Did you mean 'cosine'?"
    )
    far = message_of(check_choice, "head", "zebra", ["linear", "cosine"])
    assert far == "Expected `head` to be one of linear, cosine, but got 'zebra'."


@pytest.mark.parametrize("value", [None, 3, ["linear"], "Linear", ""])
def test_a_choice_is_exact(value):
    assert f"but got {value!r}." in message_of(check_choice, "head", value, ["linear", "cosine"])


def test_did_you_mean_is_silent_where_nothing_is_close():
    assert did_you_mean("bach_size", ["epochs", "batch_size"]) == "Did you mean 'batch_size'? Known: epochs, batch_size."
    assert did_you_mean("xyz", ["epochs", "batch_size"]) == "Known: epochs, batch_size."
    assert did_you_mean("xyz", {"a": 1, "b": 2}) == "Known: a, b."


def test_of_many_problems_a_few_are_named():
    assert name_some(["a"]) == "'a'"
    assert name_some([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert name_some(list(range(1000))) == "0, 1, 2, 3, 4 and 995 more"
    assert name_some([1, 2, 3], show=2) == "1, 2 and 1 more"
