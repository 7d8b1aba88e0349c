"""The rules of supervised fine-tuning, case by case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data.sft_filters import (
    cap_responses,
    drop_incomplete,
    drop_mixed_language,
    has_final_answer,
    is_mixed,
)
from openmimo.errors import UserError


def sample(response: str, prompt: str = "q", complete: bool = True) -> dict:
    return {"prompt": prompt, "response": response, "complete": complete}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{4}", True),
        (r"so \boxed{\frac{1}{2}} done", True),
        (r"so \boxed{\{1, 2\}}", True),
        (r"so \boxed{\frac{1}{2}", False),
        (r"so \boxed{\}", False),
        (r"first \boxed{4 then \boxed{5}", True),
        ("so 4", False),
        ("```python\ndef f(): pass\n```", True),
        ("  ```python\n  def f(): pass\n  ```\nthat is it", True),
        ("```python\ndef f(): pass", False),
        ("```\na\n```\n```python\ndef f(): pass", False),
        ("inline ``` does not count ```", False),
        ("", False),
    ],
)
def test_final_answers(response: str, expected: bool) -> None:
    assert has_final_answer(response) is expected


def test_incomplete_responses_go_and_are_counted() -> None:
    good = sample(r"\boxed{1}")
    records = [good, sample(r"\boxed{1}", complete=False), sample("1"), sample("", complete=False)]
    kept, counts = drop_incomplete(records)
    assert kept == [good]
    assert counts.kept == 1
    assert counts.dropped == {"cut off": 2, "no final answer": 1}


@pytest.mark.parametrize(
    ("response", "prompt", "expected"),
    [
        ("All of this is English, π and Σ too.", "", False),
        ("We compute 因此 the answer.", "", True),
        ("We compute the ответ now.", "", True),
        ("因此答案是四。", "", False),
        ("设 ABC 为三角形。则 sin 的值为一。", "", False),
        ("因此答案是四 because the sum of the two numbers is exactly four here", "", True),
        ("Translate: 因此 means therefore.", "What does 因此 mean?", False),
        ("The string is `因此`.\n```python\nx = '因此'\n```\nDone.", "", False),
        (r"Here $x_{因}$ is \text a unit.", "", False),
        ("Café naïve Straße", "", False),
        ("1 + 1 = 2", "", False),
        ("", "", False),
    ],
)
def test_mixed_scripts(response: str, prompt: str, expected: bool) -> None:
    assert is_mixed(response, prompt) is expected


def test_mixed_responses_are_counted() -> None:
    kept, counts = drop_mixed_language([sample("plain words"), sample("plain 因 words")])
    assert [record["response"] for record in kept] == ["plain words"]
    assert counts.dropped == {"mixed scripts": 1}


PAIRS = st.lists(st.tuples(st.sampled_from(["p", " p ", "q"]), st.sampled_from("abcdef")))


@given(PAIRS, st.integers(1, 4))
def test_the_cap_holds_and_is_filled(pairs: list, per_query: int) -> None:
    records = [sample(response, prompt) for prompt, response in pairs]
    kept, counts = cap_responses(records, per_query)
    for query in "pq":
        offered = [r["response"] for r in records if r["prompt"].strip() == query]
        taken = [r["response"] for r in kept if r["prompt"].strip() == query]
        assert taken == offered[:per_query], "repeats count, and the first ones stay"
    assert counts.kept + sum(counts.dropped.values()) == len(records)
    assert cap_responses(kept, per_query)[0] == kept


@pytest.mark.parametrize("rule", [drop_incomplete, drop_mixed_language, cap_responses])
@pytest.mark.parametrize("record", [{}, {"prompt": "p", "complete": "yes", "response": None}])
def test_a_record_without_its_fields_is_refused(rule, record: dict) -> None:
    with pytest.raises(UserError, match="an SFT record needs"):
        rule([record])


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="per_query = 0"):
        cap_responses([], 0)
