"""Are answers the same, token for token, with and without drafts?

    python benchmarks/draft_equality.py runs/nano/rl \
        runs/nano/stages/data/problems/{heldout,rl}.jsonl --json -

In float32, greedy and at temperature 1, with 1, 2, .. drafts and with what the engine chooses.
Rounding may differ: a pass over four tokens sums in another order than four passes over one. So for
the first token that differs the report says how close the two candidates were.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from figures import write

from openmimo.evals.exam import read_problems
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Completion, Request
from openmimo.model.checkpoint import load_release
from openmimo.model.mimo import MiMo


def closeness(model: MiMo, request: Request, one: Completion, two: Completion) -> float:
    """Difference of the log-probs of the first two tokens that differ."""
    a, b = one.token_ids.tolist(), two.token_ids.tolist()
    place = next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    ids = torch.tensor([[*request.prompt_ids, *a[:place]]])
    with torch.inference_mode():
        log_probs = model(ids)[0, -1].log_softmax(-1)
    return abs(float(log_probs[a[place]] - log_probs[b[place]]))


def compare(
    model: MiMo, engine: Engine, requests: Sequence[Request], expected: Sequence[Completion]
) -> dict[str, Any]:
    """How many answers are those expected, and what the drafts were worth."""
    answers = engine.run(requests)
    pairs = list(zip(requests, expected, answers, strict=True))
    differ = [p for p in pairs if p[1].token_ids.tolist() != p[2].token_ids.tolist()]
    stats = engine.stats()
    return {
        "equal": len(answers) - len(differ),
        "closeness": [closeness(model, *pair) for pair in differ],
        "tokens_per_forward": stats.tokens_per_forward,
        "acceptance": stats.acceptance,
    }


def main() -> None:
    """Measure; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a model folder with a tokenizer")
    parser.add_argument("problems", type=Path, nargs="+", help="files of problems")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=128, help="of the longest answer")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--json", metavar="FILE", default="-", help="- for standard output")
    options = parser.parse_args()
    model, tokenizer = load_release(options.model, dtype=torch.float32)
    model.eval()
    texts = [p["prompt"] for file in options.problems for p in read_problems(file).values()]
    texts = texts[: options.prompts]
    stops = (tokenizer.eos_id, tokenizer.doc_end_id)
    figures: dict[str, Any] = {"prompts": len(texts)}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        requests = [
            Request(
                n, tokenizer.chat_prompt(text), options.tokens, temperature, seed=n, stop_ids=stops
            )
            for n, text in enumerate(texts)
        ]
        length = max(len(r.prompt_ids) for r in requests) + options.tokens
        expected: list[Completion] = []
        figures[name] = {}
        for drafts in (0, *range(1, len(model.mtp_layers) + 1), "auto"):
            engine = Engine(
                model,
                slots=options.slots,
                max_length=length,
                used_vocab=tokenizer.vocab_size,
                drafts=drafts,  # type: ignore[arg-type]
            )
            if not expected:
                expected = engine.run(requests)
                figures[name]["tokens"] = sum(len(done.token_ids) for done in expected)
            else:
                figures[name][str(drafts)] = compare(model, engine, requests, expected)
    write(figures, options.json)


if __name__ == "__main__":
    main()
