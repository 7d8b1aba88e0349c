r"""The mathematics verifier against plain Math-Verify: agreement, verdicts a second on one core.

    python benchmarks/verify_math.py --data DIR --json -

DIR holds math500/test.jsonl (rows with "answer"). Each reference answer is judged against itself
and ten ways to write it, each at the end of a response with thinking and an earlier box. A false
negative counts as ours if plain Math-Verify accepts the same response. `rejects` are references of
other problems. Rates are verdicts a second of CPU time of all processes together: what one core
does, however busy the machine is.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from math_verify import parse, verify

from openmimo.rewards import MathVerifier, Verdict, extract_answer
from openmimo.rewards.math import quick_verdict

RESPONSE = "<think>\nPerhaps \\boxed{{17}}?\n</think>\nThe answer is \\boxed{{{}}}"
UNICODE = str.maketrans("-0123456789", "−０１２３４５６７８９")  # noqa: RUF001


def stretch(parenthesis: re.Match[str]) -> str:
    """A parenthesis that grows with its content."""
    return ("\\left" if parenthesis[0] == "(" else "\\right") + parenthesis[0]


VARIANTS: dict[str, Callable[[str], str]] = {
    "itself": lambda a: a,
    "dfrac": lambda a: a.replace("\\frac", "\\dfrac"),
    "tfrac": lambda a: a.replace("\\frac", "\\tfrac"),
    "no_spaces": lambda a: re.sub(r"(?<![a-zA-Z\\]) +", "", a),
    "thin_spaces": lambda a: re.sub(r"(?<=[,=+]) *", r"\\,", a),
    "period": lambda a: f"{a}.",
    "dollars": lambda a: f"${a}$",
    "text": lambda a: f"\\text{{{a}}}",
    "unicode": lambda a: a.translate(UNICODE),
    "left_right": lambda a: re.sub(r"(?<!\\left)\(|(?<!\\right)\)", stretch, a),
    "assignment": lambda a: f"x = {a}",
}  # fmt: skip


def judge_all(verifier: MathVerifier, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Our verdicts on (response, gold) pairs."""
    futures = [verifier.submit(extract_answer(text) or "", gold) for text, gold in pairs]
    return [future.result() for future in futures]


def judge_raw(verifier: MathVerifier, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Plain Math-Verify's verdicts, in our worker."""
    futures = [verifier.submit_raw(text, f"\\boxed{{{gold}}}") for text, gold in pairs]
    return [future.result() for future in futures]


def agreement(verifier: MathVerifier, golds: Sequence[str]) -> dict[str, dict[str, object]]:
    """For each variant, how many are accepted by us and by Math-Verify, and what only they accept.

    `undecided` counts verdicts without a score: timeouts and failures.
    """
    table: dict[str, dict[str, object]] = {}
    others = [*golds[1:], golds[0]]
    for name, write in [*VARIANTS.items(), ("rejects", None)]:
        answers = [write(gold) for gold in golds] if write else others
        pairs = [(RESPONSE.format(a), g) for a, g in zip(answers, golds, strict=True)]
        ours, raw = judge_all(verifier, pairs), judge_raw(verifier, pairs)
        both = list(zip(answers, golds, ours, raw, strict=True))
        table[name] = {
            "answers": len(golds),
            "ours": sum(verdict.correct for verdict in ours),
            "raw": sum(verdict.correct for verdict in raw),
            "undecided": sum(verdict.score is None for verdict in ours),
            "only_raw": [(a, g, o.detail) for a, g, o, r in both if r.correct and not o.correct],
        }
        if not write:
            table[name]["only_ours"] = [(a, g) for a, g, o, r in both if o.correct > r.correct]
    return table


def cpu_seconds() -> float:
    """CPU time of this process and of the workers under it."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own and pid not in own}:
        own |= more
    return sum(ticks[pid] for pid in own) / os.sysconf("SC_CLK_TCK")


def rate(judge: Callable[[], object], count: int) -> float:
    """Verdicts a second of CPU time."""
    start = cpu_seconds()
    judge()
    return count / max(cpu_seconds() - start, 0.01)


def rates(golds: Sequence[str]) -> dict[str, float]:
    """Verdicts a second on the variants of each answer; `fast_path_share` is a fraction of them."""
    writers = list(VARIANTS.values())
    pairs = [(RESPONSE.format(write(gold)), gold) for gold in golds for write in writers]
    few = pairs[:: len(writers) + 1]  # all variants, fewer answers: Math-Verify is slow
    figures = {}

    def plain() -> None:
        for text, gold in few:
            verify(parse(f"\\boxed{{{gold}}}"), parse(text))

    plain()  # warm: imports and Math-Verify's own caches
    figures["math_verify_in_process"] = rate(plain, len(few))
    with MathVerifier() as verifier:
        judge_raw(verifier, few)
        figures["raw_mode"] = rate(lambda: judge_raw(verifier, few), len(few))
        with mock.patch("openmimo.rewards.math_verifier.quick_verdict", return_value=None):
            figures["without_fast_path"] = rate(lambda: judge_all(verifier, few), len(few))
    answers = [(extract_answer(text) or "", gold) for text, gold in pairs]
    decided = [pair for pair in answers if quick_verdict(pair[1], pair[0])]
    figures["fast_path_share"] = len(decided) / len(answers)
    figures["fast_path_alone"] = rate(
        lambda: [quick_verdict(g, a) for a, g in decided], len(decided)
    )
    with MathVerifier() as verifier:
        verifier.submit("x+1", "1+x").result()  # starts the worker
        figures["with_fast_path"] = rate(lambda: judge_all(verifier, pairs), len(pairs))
        figures["cached"] = rate(lambda: judge_all(verifier, pairs * 10), len(pairs) * 10)
    return figures


def main() -> None:
    """Measure and print; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with math500/test.jsonl")
    parser.add_argument("--answers", type=int, default=500, help="reference answers to use")
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU time of an answer")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    lines = (options.data / "math500" / "test.jsonl").read_bytes().split(b"\n")
    golds = [json.loads(line)["answer"] for line in lines if line][: options.answers]
    with MathVerifier(seconds=options.seconds) as verifier:
        figures = {"agreement": agreement(verifier, golds), "per_second": rates(golds)}
    if options.json == "-":
        print(json.dumps(figures))
        return
    for name, row in figures["agreement"].items():
        print(f"{name:12} ours {row['ours']:3} raw {row['raw']:3} only raw {row['only_raw']}")
    for name, figure in figures["per_second"].items():
        print(f"{name:24} {figure:10.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
