"""The funnel: how many problems each gate left, by source and reason, with examples."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openmimo.data.documents import read_records
from openmimo.runs import atomic_write

EXAMPLES = 3
"""Of each reason in the report; all of them are in the gate's dropped.jsonl."""
SHOWN = 160
"""Characters of an example's question."""


def write_funnel(folder: Path, gates: Sequence[str]) -> None:
    """Write funnel.json and funnel.md from what the gates left in `folder`/stages."""
    report = [gate_report(folder / "stages" / name, name) for name in gates]
    atomic_write(folder / "funnel.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    atomic_write(folder / "funnel.md", as_markdown(report))


def gate_report(stage: Path, name: str) -> dict[str, Any]:
    """One gate: its counts, the reasons by number, examples of each reason."""
    kept = Counter(record["source"] for _, record in read_records(stage / "kept.jsonl", "source"))
    reasons: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    for _, record in read_records(stage / "dropped.jsonl", "source", "reason"):
        reason = record["reason"]
        reasons[reason] += 1
        if len(examples[reason]) < EXAMPLES:
            prompt = " ".join(record["prompt"].split())
            short = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + " ..."
            names = ("source", "origin", "detail")
            examples[reason].append({each: record[each] for each in names} | {"prompt": short})
    return {
        "gate": name,
        "before": sum(kept.values()) + sum(reasons.values()),
        "kept": sum(kept.values()),
        "kept_by_source": dict(kept),
        "dropped": dict(reasons.most_common()),
        "examples": {reason: examples[reason] for reason, _ in reasons.most_common()},
    }


def as_markdown(report: Sequence[dict[str, Any]]) -> str:
    """The same for people."""
    lines = [
        "# Curation funnel",
        "",
        "| gate | before | kept | dropped, by reason |",
        "|---|---|---|---|",
    ]
    for gate in report:
        reasons = ", ".join(f"{name}: {count:,}" for name, count in gate["dropped"].items())
        lines.append(
            f"| {gate['gate']} | {gate['before']:,} | {gate['kept']:,} | {reasons or '-'} |"
        )
    sources = list(report[0]["kept_by_source"])
    lines += ["", "## Left of each source", ""]
    lines.append("| source | " + " | ".join(gate["gate"] for gate in report) + " |")
    lines.append("|---" * (len(report) + 1) + "|")
    for source in sources:
        counts = " | ".join(f"{gate['kept_by_source'].get(source, 0):,}" for gate in report)
        lines.append(f"| {_cell(source)} | {counts} |")
    lines += ["", "## Examples of what was dropped"]
    for gate in report:
        for reason, examples in gate["examples"].items():
            lines += ["", f"**{gate['gate']}: {reason}**", ""]
            for each in examples:
                detail = f" ({_cell(each['detail'])})" if each["detail"] else ""
                lines.append(f"- {_cell(each['origin'])}{detail}: {_cell(each['prompt'])}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that is no Markdown: dollars and bars of mathematics stay as they are."""
    for special in "\\`*_|<$[":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
