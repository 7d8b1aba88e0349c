"""Extraction, normalisation, the fast path, and what is left to Math-Verify."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.judge.verdict import Status
from openmimo.rewards.math import extract_answer, normalise, quick_result, too_costly
from openmimo.rewards.math_worker import equivalent


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\begin{matrix}1\\2\\\end{matrix}}", r"\begin{matrix}1\\2\\\end{matrix}"),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"\boxed{ 7 } and then } more", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        ("no box: 42", None),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{5\}", None),
        (r"<think>\boxed{1}</think> forgot", None),
        (r"\boxed", None),
    ],
)
def test_extracts_the_last_balanced_box(response, answer):
    assert extract_answer(response) == answer


@given(st.text(alphabet=r"ab{}\ 1boxed", max_size=40))
def test_extraction_never_fails_and_never_returns_nothing(text):
    assert extract_answer(text) != ""
    assert extract_answer("\\boxed{" + text) != ""


@pytest.mark.parametrize(
    ("answer", "spelling"),
    [
        ("42.", "42"),
        ("$42$", "42"),
        ("\u22125", "-5"),
        ("\uff14\uff12", "42"),
        ("1,234,567", "1234567"),
        (r"1{,}234", "1234"),
        ("(1,234)", "(1,234)"),
        ("1,23", "1,23"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"5\text{ cm}", r"5\text{ cm}"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left(1,\ 2\right)", "(1,2)"),
        ("1 \\\\ 2", "1 \\\\ 2"),
        ("x²", "x²"),
    ],
)
def test_normalisation(answer, spelling):
    assert normalise(answer) == spelling


@given(st.integers(), st.integers(1, 999))
def test_rationals_are_equal_in_every_spelling(top, bottom):
    value = Fraction(top, bottom)
    sign = "-" if top < 0 else ""
    for gold in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}"):
        for answer in (str(value), rf"{sign}\dfrac{{{abs(top)}}}{{{bottom}}}"):
            result = quick_result(gold, answer)
            assert result is not None
            assert result.score == 1


@given(st.integers(), st.integers())
def test_integers_are_decided_exactly(gold, answer):
    result = quick_result(str(gold), f"{answer:,}.")
    assert result is not None
    assert result.score == float(gold == answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("1/3", "0.333333"), ("x+1", "1+x"), ("0.5", "0.6"), (r"\sqrt{2}", r"2^{1/2}")],
)
def test_algebra_is_left_open(gold, answer):
    assert quick_result(gold, answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9}}",
        "9^{9^9}",
        "9^{9^{" + "9" * 250 + "}}",
        "(10^9)!",
        "3!!!",
        "x^{x^{x}}",
        "2^{99999999}",
        "(" * 99 + ")" * 99,
        "1" * 400 + "+1",
    ],
)
def test_hopeless_answers_are_wrong_at_once(answer):
    result = quick_result("5", answer)
    assert result is not None
    assert result.score == 0
    assert result.status is Status.WRONG


@pytest.mark.parametrize("answer", ["2^{10}", "10^{100}", "5!", "(n+1)!", "x^{2}+y^{2}", "2^{2^3}"])
def test_ordinary_powers_are_not_costly(answer):
    assert not too_costly(answer)


@given(st.text(max_size=60), st.text(max_size=60))
def test_quick_result_never_fails(gold, answer):
    quick_result(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("x+1", "1+x", True),
        (r"\frac{1}{3}", "0.333333", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("(1,2)", "(2,1)", False),
        ("[0,1]", "(0,1)", False),
        ("x+1", "x+2", False),
        ("7", "nonsense", False),
    ],
)
def test_math_verify_decides(gold, answer, equal):
    assert equivalent(gold, answer) is equal


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("13", "9+6-2"),
        ("9", "3 + 4 + 2"),
        ("12", r"3\cdot 4"),
        ("12", "3*4"),
        ("7", "(9)-(2)"),
        ("81", r"\int_0^9 18x\,dx / 9"),
        ("6", r"\sum_{i=1}^3 i"),
    ],
)
def test_the_question_copied_into_the_box_is_no_answer(gold, answer):
    result = quick_result(gold, answer)
    assert result is not None
    assert (result.score, result.detail) == (0.0, "an operation instead of its result")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1500", r"1.5 \times 10^3"),
        ("-3", "x=-3"),
        ("9", r"9\text{ cm}"),
        ("1/2", "0.50"),
        ("x+1", "1+x"),
        (r"3-2\sqrt{2}", r"-2\sqrt{2}+3"),
    ],
)
def test_numerals_units_and_expressions_are_still_judged_by_value(gold, answer):
    result = quick_result(gold, answer)
    assert result is None or result.score == 1.0
