"""Each decision of docs/rewards.md about what Math-Verify misreads, ours beside its own."""

import pytest

from openmimo.rewards import MathVerifier, extract_answer, verify_math

# Gold, answer as it stands in the box, our status, Math-Verify's status.
DECISIONS = {
    "final punctuation": [
        ("42", "42.", "ok", "wrong"),
        ("42", "42;", "ok", "wrong"),
        ("5", r"5\\", "ok", "wrong"),
    ],
    "unicode": [
        ("-5", "\u20135", "ok", "wrong"),
        ("-5", "\u22125", "ok", "ok"),
        ("42", "\uff14\uff12", "ok", "wrong"),
        (r"\sqrt{12}", "√12", "ok", "wrong"),
        (r"(-\infty,1]", "(-∞,1]", "ok", "wrong"),
        ("x^2", "x²", "ok", "wrong"),
        ("30", "30°", "ok", "wrong"),
    ],
    "wrappers": [
        (r"\frac12", r"\text{\frac{1}{2}}", "ok", "ok"),
        ("x+1", r"\text{$x+1$}", "ok", "wrong"),
        ("5", r"\(5\)", "ok", "ok"),
        (r"\text{(C)}", "C", "ok", "ok"),
    ],
    "units": [
        ("5", r"5\text{ cm}", "ok", "ok"),
        (r"5\text{ cm}", "5", "ok", "ok"),
        (r"5\text{ cm}", r"5\text{ centimeters}", "ok", "ok"),
        (r"5\text{ cm}", r"5\text{ m}", "wrong", "ok"),
        ("5 cm", "5 m", "wrong", "ok"),
        (r"5\text{ cm}^2", r"5\text{ cm}^3", "wrong", "ok"),
        (r"5\text{ apples}", r"5\text{ fruits}", "ok", "ok"),
        (r"100\text{ cm}", r"1\text{ m}", "wrong", "wrong"),
    ],
    "percent": [
        (r"10\%", "10", "ok", "ok"),
        ("10", r"10\%", "ok", "ok"),
        ("12.5", r"12.5\%", "ok", "wrong"),
        (r"12.5\%", "12.5", "ok", "wrong"),
        (r"10\%", "0.1", "ok", "ok"),
        ("10", "0.1", "wrong", "wrong"),
        ("0.5", r"0.5\%", "wrong", "wrong"),
    ],
    "order of lists": [
        ("1,2,3", "3,2,1", "ok", "ok"),
        (r"\{1,2,3\}", "3,2,1", "ok", "ok"),
        ("(1,2,3)", "(3,2,1)", "wrong", "wrong"),
        ("(1,2)", "2,1", "wrong", "wrong"),
        ("7", "7,8", "wrong", "wrong"),
        ("7", "7,7", "ok", "ok"),
    ],
    "text after the answer": [
        ("113", r"113\text{ or so}", "wrong", "ok"),
        ("7", r"7\text{ is wrong}", "wrong", "ok"),
        (r"7\text{ or more}", r"7\text{ or more}", "ok", "ok"),
        ("113", "113 or 114", "wrong", "wrong"),
        ("1/2", r"1/2\text{ of the pie}", "ok", "ok"),
    ],
    "a number somewhere in the box": [
        ("1", "1 1/2", "wrong", "ok"),
        ("5", r"\ne 5", "unparseable", "ok"),
        ("7", r"8 \to 7", "unparseable", "ok"),
        ("x=5", "x = -(x=5)-1", "unparseable", "ok"),
        ("5", r"the answer is 5 \frac{", "unparseable", "ok"),
    ],
    "numbers side by side": [
        ("15", r"8 \quad 7", "wrong", "ok"),
        ("11/2", "1 1/2", "wrong", "wrong"),
        ("3/2", "1 1/2", "ok", "wrong"),
    ],
    "thousands": [
        ("1234", "1,234", "ok", "ok"),
        ("12000", "12 000", "ok", "wrong"),
        ("12000", r"12\,000", "ok", "wrong"),
        ("1.234", "1,234", "wrong", "wrong"),
    ],
    "words": [
        (r"\text{Evelyn}", "evelyn", "ok", "ok"),
        ("listen", "silent", "wrong", "ok"),
        (r"\text{even}", r"\text{odd}", "wrong", "wrong"),
    ],
    "number bases": [
        ("11_8", "11_{8}", "ok", "ok"),
        ("11_8", "11", "ok", "ok"),
        ("11_8", "11_9", "wrong", "ok"),
        ("11_8", "9", "wrong", "wrong"),
    ],
    "intervals and inequalities": [
        (r"1\le x\le 2", r"x\in[1,2]", "ok", "ok"),
        ("[1,2]", r"1\le x\le 2", "ok", "wrong"),
        ("[1,2]", r"1 < x\le 2", "wrong", "wrong"),
    ],
    "work left to do": [
        ("13", "9+6-2", "wrong", "ok"),
        ("12", r"2^2\cdot 3", "wrong", "ok"),
        ("13", "9+6-2=13", "ok", "ok"),
        ("1500", r"1.5\times 10^3", "ok", "ok"),
        ("x+1", "1+x", "ok", "ok"),
    ],
    "equations": [
        ("5", "x = 5", "ok", "ok"),
        ("x=5", "5", "ok", "ok"),
        ("x=5", "y=5", "wrong", "wrong"),
        ("5", "4=5", "ok", "ok"),
        ("5", "5=4", "wrong", "wrong"),
    ],
    "rounding": [
        ("1/3", "0.333333", "ok", "ok"),
        ("1/3", "0.3333", "wrong", "wrong"),
        ("1/3", r"0.\overline{3}", "ok", "wrong"),
        ("0.333333", r"0.\overline{3}", "ok", "wrong"),
        (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.33", "ok", "ok"),
        (r"\frac{1}{3}", r"0.33 \approx \frac{1}{3}", "wrong", "wrong"),
        ("5", r"\approx 5", "ok", "ok"),
    ],
}  # fmt: skip
ROWS = [(title, *row) for title, rows in DECISIONS.items() for row in rows]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(seconds=20.0) as verifier:
        yield verifier


@pytest.mark.parametrize(("title", "gold", "answer", "ours", "raw"), ROWS)
def test_each_known_error_is_decided(verifier, title, gold, answer, ours, raw):
    assert verifier.submit(answer, gold).result().status.value == ours
    theirs = verifier.submit_raw(f"\\boxed{{{answer}}}", f"\\boxed{{{gold}}}").result()
    assert theirs.status.value == raw, "Math-Verify has changed: look at the decision again"


@pytest.mark.parametrize(
    ("response", "gold", "ours", "raw"),
    [
        # Two boxes near each other are one set for Math-Verify; the last box is the answer.
        (r"\boxed{69}, \boxed{70}", "70", "ok", "wrong"),
        (r"\boxed{69}, \boxed{70}", "69,70", "wrong", "ok"),
        # A box that is cut off does not bring an earlier one back.
        (r"\boxed{5}. But no: \boxed{", "5", "unparseable", "ok"),
        (r"\boxed{5}. But no: \boxed{}", "5", "unparseable", "unparseable"),
        # What was boxed while thinking is not the answer, and neither is a number without a box.
        (r"<think>\boxed{5}</think> I am not sure.", "5", "unparseable", "ok"),
        (r"<think>\boxed{4}</think> The answer is 5.", "5", "unparseable", "wrong"),
    ],
)
def test_the_last_whole_box_is_the_answer(verifier, response, gold, ours, raw):
    assert verify_math(response, gold).status.value == ours
    answer = extract_answer(response)
    assert (answer is None) == (ours == "unparseable")
    assert verifier.submit_raw(response, f"${gold}$").result().status.value == raw
