"""Rollouts of `mimo curate` by vLLM, in both of its forms."""

from pathlib import Path

import pytest

from openmimo.curation.keep import Outcomes
from openmimo.curation.rollouts import open_journal, roll_out
from openmimo.curation.solver import Sampling, Solver
from openmimo.data.documents import read_records
from openmimo.runs import Interrupt

from .conftest import Export, Native
from .servers import KEY, Server
from .test_remote import server  # noqa: F401, a fixture

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder(export: Export) -> Path:
    return export("vllm")


def check(solver: Solver, native: Native, journal: Path) -> None:
    """Nearly greedy answers are the native engine's, and are judged."""
    texts = [native.tokenizer.decode(list(ids)) for ids in native.greedy.answers[:4]]
    problems = [
        {"id": f"p{n}", "domain": "math", "prompt": native.questions[n], "answer": "1"}
        for n in range(len(texts))
    ]
    sampling = Sampling(rollouts=2, tokens=96, temperature=0.01, test_seconds=2.0, seed=0)
    with open_journal(journal) as answers:
        found = roll_out("vllm", solver, problems, sampling, answers, Interrupt())
    records = [record for _, record in read_records(journal)]
    assert {record["status"] for record in records} <= {"ok", "wrong", "unparseable"}
    assert found == {
        f"p{n}": Outcomes(2, sum(r["correct"] for r in records if r["id"] == f"p{n}"))
        for n in range(len(texts))
    }
    same = sum(record["response"] == texts[int(record["id"][1:])] for record in records)
    # The least temperature that vLLM has tells tokens apart from 0.05 nats on; greedy answers are
    # compared token by token in the other tests.
    assert same >= 4, "of 8"


def test_in_a_process_of_its_own(
    folder: Path, native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    check(Solver(folder, "vllm"), native, tmp_path / "journal.jsonl")


def test_a_server(
    server: Server,  # noqa: F811
    folder: Path,
    native: Native,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    check(Solver(folder, server.url), native, tmp_path / "journal.jsonl")
