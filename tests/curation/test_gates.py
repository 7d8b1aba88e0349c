"""Deduplication, decontamination and kinds of problems."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.curation.gates import (
    QUESTIONS,
    decontaminate,
    deduplicate,
    kind_by_rule,
    sift_kinds,
)
from openmimo.errors import UserError

from .conftest import split

STORY = "A farmer has hens and he buys as many as {} ducks and cows, which are three, so he has"


def problems(*pairs):
    return [
        {"domain": "math", "prompt": prompt, "answer": answer, "origin": str(index), "source": "s"}
        for index, (prompt, answer) in enumerate(pairs)
    ]


def origins(kept):
    return [problem["origin"] for problem in kept]


def test_the_first_of_equal_questions_stays():
    kept, dropped = split(
        deduplicate(problems(("One plus one?", "2"), ("one  plus ONE", "2")), 0.8)
    )
    assert origins(kept) == ["0"]
    assert (dropped[0].reason, dropped[0].detail) == ("duplicate", "of 0")


def test_a_golden_solution_goes_before_the_order():
    rows = problems(("Sort the list", "1"), ("Sort the list", "1"))
    rows[1] |= {"golden": "pass"}
    assert origins(split(deduplicate(rows, 0.8))[0]) == ["1"]


def test_answers_that_contradict_each_other_leave_nothing():
    rows = problems(("One plus one?", "2"), ("one plus one", "3"), ("Two plus two?", "4"))
    kept, dropped = split(deduplicate(rows, 0.8))
    assert origins(kept) == ["2"]
    assert {(drop.reason, drop.detail) for drop in dropped} == {
        ("duplicates with other answers", "2 / 3")
    }


def test_a_contradiction_spares_one_of_the_others():
    story = " ".join(f"Then hen {n} walks to field {n}." for n in range(9)) + " How many are left"
    near = story.replace("How many", "How few")
    rows = problems((story, "2"), (f"{story}?", "3"), (near, "2"), (f"{near}?", "2"))
    kept, dropped = split(deduplicate(rows, 0.8))
    assert origins(kept) == ["2"]
    assert [drop.reason for drop in dropped][2] == "duplicate"


def test_a_factorial_is_no_exclamation_mark():
    rows = problems(("What is 5", "5"), ("What is 5!", "120"))
    assert list(deduplicate(rows, 0.8)) == rows


@given(st.lists(st.integers(0, 5).map(lambda n: (f"What is {n} + 1?", str(n + 1)))))
def test_what_is_kept_is_every_question_once(pairs):
    kept, dropped = split(deduplicate(problems(*pairs), 0.8))
    assert [problem["prompt"] for problem in kept] == list(dict.fromkeys(p for p, _ in pairs))
    assert len(kept) + len(dropped) == len(pairs)


def test_an_evaluation_item_is_found_by_words_or_by_an_assertion():
    rows = problems((STORY.format(9), "1"), ("Compute 3 * 4, please.", "12"), ("Add one.", "2"))
    rows[2] |= {"domain": "code", "tests": [{"code": "assert plus(1) == 2", "setup": ""}]}
    items = {
        "a": STORY.format(9).upper(), "b": "compute 3 * 4", "c": "assert plus(1) == 2",
        "d": STORY.format(8),
    }  # fmt: skip
    kept, dropped = split(decontaminate(rows, items, 16))
    assert not kept
    assert [drop.detail for drop in dropped] == ["a", "b", "c"]
    assert list(decontaminate(rows, {"d": STORY.format(8)}, 16)) == rows
    assert list(decontaminate(rows, {}, 16)) == rows


CHOICE = "What is $1+1$? $\\textbf{(A)}\\ 1 \\qquad\\textbf{(B)}\\ 2 \\qquad\\textbf{(C)}\\ 3$"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("Prove that there are infinitely many primes.", "proof"),
        ("Let $n>1$. Show that $n^2>n$.", "proof"),
        ("Find all $x$, and prove your answer.", "proof"),
        ("In what year will the census show that the number is less than 10?", None),
        ("This proves useful. How many?", None),
        ("A lawyer must prove a case in 3 days. How many hours?", None),
        (CHOICE, "multiple choice"),
        ("What is 1+1? (A) 1 (B) 2 (C) 3", "multiple choice"),
        ("Find n such that (a) n > 1, (b) n < 9 and (c) n is a square.", None),
        ("What is 1+1?\nA. 1\nB. 2\nC. 3", "multiple choice"),
        ("Which of the following is prime: 4, 5, 6?", "multiple choice"),
        ("[asy] label('(A)'); label('(B)'); label('(C)'); [/asy] What is the area?", None),
        ("Triangle $ABC$ has $A=(0,0)$, $B=(1,0)$, $C=(0,1)$. Find its area.", None),
    ],
)
def test_kinds_of_mathematics(prompt, kind):
    assert kind_by_rule({"domain": "math", "prompt": prompt}) == kind


@pytest.mark.parametrize(
    ("prompt", "test", "kind"),
    [
        ("This is an interactive problem.", {"stdin": "", "stdout": ""}, "interactive"),
        ("If there are multiple answers, print any of them.", {"stdin": "", "stdout": ""}, "many"),
        ("If there are multiple answers, return any.", {"code": "assert f() in (1, 2)"}, None),
        ("Prove your skill: print n.", {"stdin": "", "stdout": ""}, None),
    ],
)
def test_kinds_of_programs(prompt, test, kind):
    found = kind_by_rule({"domain": "code", "prompt": prompt, "tests": [test]})
    assert found is None if kind is None else found.startswith(kind)


def test_a_filter_sees_only_what_the_rules_left():
    seen = []

    def judgement(questions):
        seen.extend(questions)
        return ["opinion" if "best" in question else None for question in questions]

    rows = problems(("Prove it.", "1"), ("What is best?", "1"), ("What is 1?", "1"))
    kept, dropped = split(sift_kinds(rows, judgement))
    assert origins(kept) == ["2"]
    assert [(drop.reason, drop.detail) for drop in dropped] == [
        ("proof", "by rule"),
        ("opinion", "by the filter"),
    ]
    assert seen == ["What is best?", "What is 1?"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([None], "gave 1 answers to 2 questions"),
        ([None, ""], "the filter answered ''"),
        ([True, None], "the filter answered True"),
    ],
)
def test_a_filter_that_does_not_answer_is_refused(answers, message):
    rows = problems(("What is best?", "1"), ("What is 1?", "1"))
    with pytest.raises(UserError, match=message):
        list(sift_kinds(rows, lambda questions: answers))


def test_a_filter_gets_few_questions_at_once():
    sizes = []

    def judgement(questions):
        sizes.append(len(questions))
        return [None] * len(questions)

    rows = problems(*((f"What is {n}?", "1") for n in range(QUESTIONS + 2)))
    assert list(sift_kinds(rows, judgement)) == rows
    assert sizes == [QUESTIONS, 2]


class Stream:
    """Problems that count how many of them are out, as if read from a file."""

    def __init__(self, size):
        self.size, self.seen = size, 0

    def __iter__(self):
        self.seen = 0
        for row in problems(*((f"What is {n} and {n * n}?", "1") for n in range(self.size))):
            self.seen += 1
            yield row


@pytest.mark.parametrize(
    "gate",
    [
        lambda rows: deduplicate(rows, 0.8),
        lambda rows: decontaminate(rows, {"a": STORY.format(1)}, 16),
        lambda rows: sift_kinds(rows, None),
    ],
)
def test_a_gate_yields_before_it_has_read_all(gate):
    stream = Stream(5000)
    next(gate(stream))
    assert stream.seen <= 2048
