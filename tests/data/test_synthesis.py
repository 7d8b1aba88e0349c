"""Generated text, and that its faults are ones that the SFT filters find."""

import random

import pytest

from openmimo.data.problem_sets import FAMILIES, draw_any
from openmimo.data.problems.problem import Teacher
from openmimo.data.sft_filters import has_final_answer, is_mixed
from openmimo.data.synthesis import (
    MOST_RESPONSES,
    WANDERING_LINES,
    chats,
    pages,
    raw_samples,
)

TEACHER = Teacher(direct=0.5, slip=0.1, sloppy=0.5)


@pytest.mark.parametrize("domain", FAMILIES)
def test_pages_hold_a_problem_and_an_answer(domain: str) -> None:
    documents = pages(domain, 200, TEACHER, random.Random(1))
    assert len(documents) == 200
    assert {document.source for document in documents} == {domain}
    answer = {"math": "\\boxed{", "code": "def f(xs):"}[domain]
    assert all(document.text.count(answer) == 1 for document in documents)
    question = sum(document.text.startswith("Question: ") for document in documents)
    assert 130 < question < 190
    assert documents == pages(domain, 200, TEACHER, random.Random(1))


def test_chats_take_the_domains_in_turn() -> None:
    talks = chats(20, TEACHER, random.Random(1))
    assert len(talks) == 20
    assert all("```python" in chat.response for chat in talks[1::2])
    assert not any("```python" in chat.response for chat in talks[::2])
    assert all(has_final_answer(chat.response) for chat in talks)


def test_raw_samples_have_the_faults_that_they_claim() -> None:
    rng = random.Random(1)
    queries = [draw_any(domain, rng) for domain in FAMILIES for _ in range(200)]
    samples = raw_samples(queries, TEACHER, rng)
    counts = {query.id: 0 for query in queries}
    faults = {"said to be cut": 0, "cut": 0, "mixed": 0, "none": 0}
    for sample in samples:
        counts[sample["query_id"]] += 1
        response = sample["response"]
        if not sample["complete"]:
            faults["said to be cut"] += 1
        elif not has_final_answer(response):
            faults["cut"] += 1
        elif is_mixed(response, sample["prompt"]):
            faults["mixed"] += 1
        else:
            assert response.isascii()
            faults["none"] += 1
    assert min(counts.values()) >= 1
    assert sum(counts.values()) == len(samples) > len(queries) * MOST_RESPONSES / 3
    assert all(count > 5 for count in faults.values())
    assert faults["none"] > 0.9 * len(samples)


@pytest.mark.parametrize("domain", FAMILIES)
def test_no_beginning_of_a_response_looks_finished(domain: str) -> None:
    rng = random.Random(2)
    for _ in range(20):
        response = draw_any(domain, rng).respond(TEACHER, rng)
        assert has_final_answer(response)
        assert not any(has_final_answer(response[:end]) for end in range(len(response)))


@pytest.mark.parametrize("line", WANDERING_LINES)
@pytest.mark.parametrize("direct", [0.0, 1.0])
@pytest.mark.parametrize("domain", FAMILIES)
def test_wandering_lines_are_found_in_every_response(domain: str, direct: float, line: str) -> None:
    rng = random.Random(3)
    teacher = Teacher(direct=direct, slip=0.0, sloppy=0.0)
    for _ in range(20):
        problem = draw_any(domain, rng)
        response = problem.respond(teacher, rng)
        assert not is_mixed(response, problem.prompt)
        assert is_mixed(f"{line}\n{response}", problem.prompt)
