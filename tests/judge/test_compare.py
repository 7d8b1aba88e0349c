"""Comparison rules on outputs and values."""

import json
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.judge.compare import Rule, RuleName, decode, output_difference, values_match
from openmimo.judge.records import parse_test

NAMES = [name for name in get_args(RuleName) if name != "livecodebench"]

# expected, actual, and the rules under which they match
OUTPUTS = [
    (b"1 2\n3\n", b"1 2\n3\n", set(NAMES)),
    (b"1 2\n3\n", b"1 2\n3", {"tokens", "lines", "floats", "unordered"}),
    (b"1 2\n3\n", b"1 2 \r\n3\n\n\n", {"tokens", "lines", "floats", "unordered"}),
    (b"1 2\n3\n", b"1\n2 3", {"tokens", "floats"}),
    (b"1 2\n3\n", b"1  2\n3\n", {"tokens", "floats"}),
    (b"1 2\n3\n", b"3\n1 2\n", {"unordered"}),
    (b"1 2\n3\n", b"2 1\n3\n", set()),
    (b"1 2\n3\n", b"1 2\n3\n3\n", set()),
    (b"1\n1\n2\n", b"1\n2\n2\n", set()),
    (b"0.5\n", b".50000001\n", {"floats"}),
    (b"0.5\n", b"5e-1\n", {"floats"}),
    (b"0.5\n", b"0.50001\n", set()),
    (b"1e9\n", b"1000000999.0\n", {"floats"}),
    (b"5\n", b"5.0\n", {"floats"}),
    (b"5\n", b"5.0000001\n", set()),
    (b"100000000\n", b"100000001\n", set()),
    (b"0.5\n", b"nan\n", set()),
    (b"inf\n", b"Infinity\n", set()),
    (b"nan\n", b"nan\n", set(NAMES)),  # the same bytes
    (b"YES\n", b"yes\n", set()),
    (b"", b"", set(NAMES)),
    (b"", b"\n \n", {"tokens", "lines", "floats", "unordered"}),
    (b"", b"0\n", set()),
    (b"1\n", b"", set()),
    (b"\xff\xfe\n", b"\xff\xfe", {"tokens", "lines", "floats", "unordered"}),
    (b"0.5\n", b"1e9999999999\n", set()),
    (b"0.5\n", b"9" * 10000 + b"\n", set()),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("expected", "actual", "matching"), OUTPUTS)
def test_outputs_match_under_these_rules(name, expected, actual, matching):
    difference = output_difference(Rule(name), expected, actual)
    assert (difference is None) == (name in matching), difference


def test_livecodebench_compares_lines_as_decimals():
    rule = Rule("livecodebench")
    for expected, actual in ((b"1.50 2\nx", b" 1.5  2.0 \nx\n\n"), (b"a b", b"a b"), (b"", b" ")):
        assert output_difference(rule, expected, actual) is None
    for expected, actual in ((b"a b", b"a  b"), (b"1\n2", b"1 2"), (b"1", b"1.0000001")):
        assert output_difference(rule, expected, actual)


def test_tolerances_and_case_are_settings():
    assert output_difference(Rule("floats", 0.1, 0), b"1.0", b"1.09") is None
    assert output_difference(Rule("floats", 0.1, 0), b"1.0", b"1.11")
    assert output_difference(Rule("floats", 0, 0.1), b"100.0", b"109") is None
    assert output_difference(Rule("floats", 0.1, 0), b"5", b"5.05")
    assert output_difference(Rule("floats", 0.1, 0, whole_numbers=True), b"5", b"5.05") is None
    assert output_difference(Rule("tokens", ignore_case=True), b"YES", b"yes") is None
    assert output_difference(Rule("lines", ignore_case=True), b"a B", b"A b") is None


def test_differences_are_explained():
    assert output_difference(Rule("tokens"), b"1 2 3", b"1 5 3") == "token 2 is '5', not '2'"
    assert output_difference(Rule("tokens"), b"1 2 3", b"1 2") == "2 tokens, not 3"
    assert output_difference(Rule("lines"), b"a\nb", b"a\nc") == "line 2 is 'c', not 'b'"
    assert output_difference(Rule("exact"), b"abc", b"abd") == "differs from byte 3 on"
    assert output_difference(Rule("unordered"), b"a\nb", b"b\nc") == "a line too many: 'c'"


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_rules_from_strict_to_lax(expected, actual):
    matches = {name: output_difference(Rule(name), expected, actual) is None for name in NAMES}
    for strict, lax in (
        ("exact", "lines"), ("lines", "tokens"), ("tokens", "floats"), ("lines", "unordered"),
    ):  # fmt: skip
        assert matches[lax] or not matches[strict]
    for name in NAMES:
        assert output_difference(Rule(name), expected, expected) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(json_values)
def test_a_value_matches_itself_through_json(value):
    value = json.loads(json.dumps(value))
    for name in NAMES:
        assert values_match(Rule(name), value, value)


@given(json_values, json_values)
def test_exact_values_match_as_their_json_text_does(a, b):
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    if values_match(Rule("exact"), a, b) and not same:
        # The one difference allowed: a whole number where a float is expected (0.0 is -0.0).
        assert json.dumps(a) != json.dumps(b)
        assert a == b
    if same:
        assert values_match(Rule("exact"), a, b)


def test_unordered_values_are_a_multiset():
    rule = Rule("unordered")
    assert values_match(rule, [1, 1.5, "a"], ["a", 1, 1.5000000001])
    assert not values_match(rule, [1, 1, 2], [1, 2, 2])
    assert not values_match(rule, [True], [1])
    assert not values_match(rule, [[1, 2]], [[2, 1]])


def test_decode_refuses_what_is_no_value():
    for payload in (b"", b"[", b"1 2", b"[" * 100_000, b"\xff"):
        with pytest.raises(ValueError, match=r".*"):
            decode(payload)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"stdin": "1"},
        {"stdin": 1, "stdout": "1"},
        {"args": [1], "expected": 1},
        {"args": 1, "expected": 1, "entry_point": "f"},
        {"stdin": "", "stdout": "", "rule": "tokenz"},
        {"stdin": "", "stdout": "", "rule": {"nam": "tokens"}},
        {"stdin": "", "stdout": "", "rule": {"name": "floats", "absolute": -1}},
        {"stdin": "", "stdout": "", "rule": 3},
        {"code": 3},
    ],
)
def test_records_that_are_no_test_are_the_users_error(record):
    with pytest.raises(UserError):
        parse_test(record)


def test_long_lists_in_another_order_are_compared_at_once():
    rule, start = Rule("unordered"), time.monotonic()
    numbers = [n / 7 for n in range(20_000)]
    pairs = [[n, str(n)] for n in range(20_000)]
    for items in (numbers, pairs):
        assert values_match(rule, items, items[::-1])
        assert not values_match(rule, items, [*items[:0:-1], items[1]])
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ([1.0, 1.15], [1.08, 0.95], True),  # not each with the first that is near
        ([1, 1.0], [1.0, 1], True),
        ([1, 1.0], [1.0, 1.0], False),
        ([[0.5], "a", "a"], ["a", [0.55], "a"], True),
        ([["a"], ["a"], ["b"]], [["a"], ["b"], ["b"]], False),
        ([[float("nan")], 1], [1, [float("nan")]], False),
        ([[float("nan")], "a"], [[float("nan")], "a"], False),
        ([True, "a"], ["a", 1], False),
        ([{"a": 1, "b": 2}, 1], [1, {"b": 2, "a": 1}], True),
    ],
)
def test_lists_in_any_order(expected, actual, same):
    assert values_match(Rule("unordered", absolute=0.1), expected, actual) is same
