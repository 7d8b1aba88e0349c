"""Extraction, normalisation, the rules without algebra, and what is left to Math-Verify."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.judge.verdict import Status
from openmimo.rewards.math import extract_answer, quick_verdict, rational
from openmimo.rewards.math_cost import too_costly
from openmimo.rewards.math_spelling import normalise
from openmimo.rewards.math_units import unit
from openmimo.rewards.math_worker import compare


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
        (r"\boxed {4} is what \boxed holds", "4"),
        ("\\boxed{1}" + "{" * 100_000, "1"),
        ("\\boxed{" * 20_000, None),
        ("\\boxed{" + "{" * 100_000 + "}" * 100_000, None),
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
        (r"\left(1,\ 2\right)", "(1, 2)"),
        (r"12\,000", "12000"),
        (r"8\quad 7", "8 7"),
        (r"5\\", "5"),
        (r"\(5\)", "5"),
        (r"\text{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\text{a} + \text{b}", r"\text{a} + \text{b}"),
        ("1 1/2", r"1\frac{1}{2}"),
        (r"\$1{,}234.50", "1234.50"),
        (r"\sqrt{2} \approx 1.41", r"\sqrt{2}"),
        (r"x \approx 1.41", "1.41"),
        ("√12", r"\sqrt{12}"),
        ("x⁻¹²", "x^{-12}"),
        ("\u0663", "3"),
        ("4\u200b2", "42"),
        ("1 \\\\ 2", "1 \\\\ 2"),
        ("x²", "x^{2}"),
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
            result = quick_verdict(gold, answer)
            assert result is not None
            assert result.score == 1


@given(st.integers(), st.integers())
def test_integers_are_decided_exactly(gold, answer):
    result = quick_verdict(str(gold), f"{answer:,}.")
    assert result is not None
    assert result.score == float(gold == answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("1/3", "0.333333"), ("x+1", "1+x"), ("0.5", "0.6"), (r"\sqrt{2}", r"2^{1/2}")],
)
def test_algebra_is_left_open(gold, answer):
    assert quick_verdict(gold, answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9}}",
        "9^{9^9}",
        "9^{9^{" + "9" * 250 + "}}",
        "(10^9)!",
        "3!!!",
        "2^{99999999}",
        "(" * 99 + ")" * 99,
        "1" * 400 + "+1",
    ],
)
def test_hopeless_answers_are_wrong_at_once(answer):
    result = quick_verdict("5", answer)
    assert result is not None
    assert result.score == 0
    assert result.status is Status.WRONG


@pytest.mark.parametrize(
    "answer", ["2^{10}", "10^{100}", "5!", "(n+1)!", "x^{2}+y^{2}", "2^{2^3}", "e^{x^n}"]
)
def test_ordinary_powers_are_not_costly(answer):
    assert not too_costly(answer)


_MARKUP = st.lists(st.sampled_from([*r"\{}()[]^_$%.,:=+-/ 0123ax", "\\frac"]), max_size=30).map(
    "".join
)


@given(_MARKUP, _MARKUP)
def test_quick_verdicts_are_of_one_mind_about_a_text_and_itself(gold, answer):
    verdict = quick_verdict(gold, gold)
    assert verdict is not None
    assert verdict.status is (Status.OK if gold.strip() else Status.UNPARSEABLE)
    quick_verdict(gold, answer)


@given(st.integers(-(10**6), 10**6), st.integers(0, 999), st.integers(1, 999))
def test_a_mixed_number_is_the_sum_of_its_parts(whole, top, bottom):
    sign = -1 if whole < 0 else 1
    value = whole + sign * Fraction(top, bottom)
    assert rational(normalise(f"{whole} {top}/{bottom}")) == (
        value if whole else Fraction(top, bottom)
    )


@given(
    st.integers(0, 99),
    st.text("0123456789", max_size=4),
    st.text("0123456789", min_size=1, max_size=4),
)
def test_a_repeating_decimal_is_the_limit_of_its_digits(whole, fixed, period):
    value = rational(f"{whole}.{fixed}\\overline{{{period}}}")
    digits = Fraction(f"{whole}.{fixed}{period * 20}")
    assert 0 <= value - digits <= Fraction(1, 10 ** (len(fixed) + 20 * len(period)))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (r"5\text{ cm}", ("cm", 1)),
        (r"5\text{ centimeters}", ("cm", 1)),
        ("5 sq. ft", ("ft", 2)),
        (r"5\,\text{cm}^2", ("cm", 2)),
        (r"5 \mathrm{m}^{3}", ("m", 3)),
        ("5 inches", ("in", 1)),
        ("5x", None),
        (r"5\text{ apples}", None),
        (r"\text{m}", ("m", 1)),
        ("m", None),
        ("", None),
    ],
)
def test_units(answer, found):
    assert unit(answer) == found


@given(st.text(max_size=60), st.text(max_size=60))
def test_quick_verdict_never_fails(gold, answer):
    quick_verdict(gold, answer)


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
    assert compare(gold, answer)[0] is (Status.OK if equal else Status.WRONG)


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
    result = quick_verdict(gold, answer)
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
    result = quick_verdict(gold, answer)
    assert result is None or result.score == 1.0
