"""Generated text: corpus pages, chats and raw SFT samples.

The report's synthetic data comes from large models; here teachers of chosen care write responses
to generated problems. Everything is drawn from the `random.Random` that the caller passes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from openmimo.data.documents import Document
from openmimo.data.problem_sets import FAMILIES, draw_any
from openmimo.data.problems.mathematics import worksheet
from openmimo.data.problems.problem import Problem, Teacher

# How pages print a question and its answer, and how often.
PAGE_LAYOUTS = {
    "Question: {prompt}\nAnswer:\n{response}": 0.8,
    "Q: {prompt}\nA:\n{response}": 0.1,
    "{prompt}\n\n{response}": 0.1,
}

MOST_RESPONSES = 10
"""A query gets one to this many raw responses."""

# What the filters of SFT are there for. The shares are assumed.
CUT_OFF = 0.03
WANDERING = 0.01
WANDERING_LINES = (
    "Let me check this once more: 因此.",
    "So the result is as follows, итак.",
)


class Chat(NamedTuple):
    """One user message and the answer to it."""

    prompt: str
    response: str

    @property
    def text(self) -> str:
        """Both, as decontamination reads them."""
        return f"{self.prompt}\n{self.response}"


def pages(domain: str, count: int, teacher: Teacher, rng: random.Random) -> list[Document]:
    """Corpus pages of source `domain`, each a problem and the teacher's response to it."""
    documents = []
    tag = {"math": "mathematics", "code": "code"}[domain]
    for number in range(count):
        problem = draw_any(domain, rng)
        (layout,) = rng.choices(list(PAGE_LAYOUTS), list(PAGE_LAYOUTS.values()))
        text = layout.format(prompt=problem.prompt, response=problem.respond(teacher, rng))
        documents.append(Document(text, domain, tag, f"generated:{problem.family}/{number}"))
    return documents


def worksheets(
    count: int, teacher: Teacher, rng: random.Random, exclude: Collection[str]
) -> list[Document]:
    """Corpus pages of drills without words; none whose question is in `exclude`.

    Decontamination compares words and cannot see a question in a bare drill, so the held-out
    questions are kept out here.
    """
    texts = (worksheet(teacher, rng, exclude) for _ in range(count))
    return [
        Document(text, "math", "mathematics", f"generated:worksheet/{number}")
        for number, text in enumerate(texts)
        if text
    ]


def chats(count: int, teacher: Teacher, rng: random.Random) -> list[Chat]:
    """Chats about problems of all domains in turn."""
    domains = list(FAMILIES)
    problems = (draw_any(domains[number % len(domains)], rng) for number in range(count))
    return [Chat(problem.prompt, problem.respond(teacher, rng)) for problem in problems]


def raw_samples(
    queries: Iterable[Problem], teacher: Teacher, rng: random.Random
) -> list[dict[str, Any]]:
    """SFT records before any filter: one to MOST_RESPONSES for each query, some with a fault.

    A record has "prompt", "response", "query_id", "domain" (strings) and "complete" (bool).
    """
    return [
        _raw_sample(query, teacher, rng)
        for query in queries
        for _ in range(rng.randint(1, MOST_RESPONSES))
    ]


def _raw_sample(query: Problem, teacher: Teacher, rng: random.Random) -> dict[str, Any]:
    response, complete = query.respond(teacher, rng), True
    fault = rng.random()
    if fault < CUT_OFF:
        # One in two comes from a source that does not say so.
        response, complete = response[: rng.randrange(len(response))], rng.random() < 0.5
    elif fault < CUT_OFF + WANDERING:
        response = f"{rng.choice(WANDERING_LINES)}\n{response}"
    return {
        "prompt": query.prompt,
        "response": response,
        "query_id": query.id,
        "domain": query.domain,
        "complete": complete,
    }
