"""The public sets through the gates: GSM8K, MATH, CodeContests, MBPP."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmimo.curation import gates
from openmimo.curation.pipeline import curate
from openmimo.curation.sources import open_source, read_items, read_sources

from .conftest import split, write_jsonl

SETS = {
    "gsm8k": "gsm8k/train.jsonl",
    "math": "math/train_7474.json",
    "mbpp": "mbpp/mbpp.jsonl",
    "code_contests": "code_contests_test/code_contests.json",
}
AGAINST = (
    "gsm8k/test.jsonl", "math/test.jsonl", "math500/test.jsonl", "aime/aime24.jsonl",
    "aime/aime25.jsonl", "amc/amc23.jsonl", "humaneval/HumanEval.jsonl.gz",
    "mbpp_plus/MbppPlus.jsonl.gz",
)  # fmt: skip

Finder = Callable[[str], Path]


@pytest.fixture(scope="module")
def read(data_file: Finder) -> list[dict[str, Any]]:
    sources = [open_source(f"{n}:{data_file(p)}") for n, p in SETS.items()]
    return split(read_sources(sources, {}))[0]


@pytest.fixture(scope="module")
def items(data_file: Finder) -> dict[str, str]:
    return read_items([open_source(str(data_file(path))) for path in AGAINST])


@pytest.mark.slow
def test_the_funnel_in_the_documentation(read: list[dict[str, Any]], items: dict[str, str]) -> None:
    """Up to the gates that run programs, of whole sets."""
    page = (Path(__file__).parents[2] / "docs/curation.md").read_text()
    table = {
        gate: [int(number.replace(",", "")) for number in numbers]
        for gate, *numbers in re.findall(
            r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \|", page, re.MULTILINE
        )
    }
    deduplicated, _ = split(gates.deduplicate(read, 0.8))
    clean, _ = split(gates.decontaminate(deduplicated, items, 16))
    left, dropped = split(gates.sift_kinds(clean, None))
    counts = [len(problems) for problems in (read, deduplicated, clean, left)]
    assert table["read"][1] == counts[0]
    for gate, before, after in zip(
        ("dedup", "decontaminate", "kinds"), counts, counts[1:], strict=False
    ):
        assert table[gate] == [before, after]
    assert sum(drop.reason == "interactive" for drop in dropped) == 3


@pytest.mark.slow
def test_reworded_items_of_mbpp_plus_are_found(data_file: Finder) -> None:
    """Every second one was reworded; most keep an assertion."""
    problems, _ = split(read_sources([open_source(f"mbpp:{data_file('mbpp/mbpp.jsonl')}")], {}))
    items = read_items([open_source(str(data_file("mbpp_plus/MbppPlus.jsonl.gz")))])
    words = {name: text for name, text in items.items() if "assertion" not in name}
    found = [len(split(gates.decontaminate(problems, part, 16))[1]) for part in (words, items)]
    assert found[0] < 230 < 330 < found[1]


@pytest.mark.slow
def test_a_part_of_each_set_through_every_gate(
    data_file: Finder, settings: Any, tmp_path: Path
) -> None:
    sources = []
    for name, path in SETS.items():
        file = data_file(path)
        text = file.read_text()
        rows = (
            json.loads(text) if file.suffix == ".json" else map(json.loads, text.split("\n")[:-1])
        )
        part = write_jsonl(tmp_path / f"{name}.jsonl", list(rows)[-60:])
        sources.append(open_source(f"{name}:{part}"))
    against = [open_source(str(data_file(path))) for path in AGAINST]
    curate(sources, against, settings(), tmp_path / "out")
    funnel = {gate["gate"]: gate for gate in json.loads((tmp_path / "out/funnel.json").read_text())}
    assert funnel["read"]["kept"] == 240
    assert funnel["references"]["dropped"] == {"golden solution fails": 1}, "one needs Node"
    assert "Node" in funnel["references"]["examples"]["golden solution fails"][0]["detail"]
    assert set(funnel["keep"]["dropped"]) == {"no golden solution"}
    assert len(funnel["keep"]["kept_by_source"]) == 3
