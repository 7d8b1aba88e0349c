"""Our folders in transformers: `generate(use_mtp=True)` against plain greedy, and against us.

    python benchmarks/transformers_mtp.py RUN/rl --prompts 40 --json -

Greedy answers to arithmetic prompts, in float32: by our engine, by transformers, and by
transformers drafting with the folder's MTP layer. Counts equal answers, and how many tokens
transformers gains by one forward pass of the trunk.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.checkpoint import load_release


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a release folder")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=96, help="of the longest answer")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args()
    text = json.dumps(measure(options.model, options.prompts, options.tokens), indent=2)
    if options.json and options.json != "-":
        Path(options.json).write_text(text + "\n")
    else:
        print(text)


def measure(folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    model, tokenizer = load_release(folder, dtype=torch.float32)
    questions = [f"What is {7 * n % 41} + {3 * n % 29} + {n}?" for n in range(1, prompts + 1)]
    ids = [tokenizer.chat_prompt(question) for question in questions]
    ours = answers(model.eval(), tokenizer, ids, tokens)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    )
    forwards: list[int] = []
    theirs.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    stop = [tokenizer.eos_id, tokenizer.doc_end_id]
    out: dict[str, list[list[int]]] = {}
    passes: dict[str, int] = {}
    for name, use_mtp in (("plain", False), ("mtp", True)):
        forwards.clear()
        out[name] = [
            theirs.generate(
                torch.tensor([prompt]), use_mtp=use_mtp, do_sample=False, max_new_tokens=tokens,
                eos_token_id=stop, pad_token_id=tokenizer.doc_end_id,
            )[0, len(prompt) :].tolist()
            for prompt in ids
        ]  # fmt: skip
        passes[name] = len(forwards)
    made = sum(map(len, out["plain"]))
    return {
        "prompts": prompts,
        "tokens": made,
        "mtp_equals_plain": sum(a == b for a, b in zip(out["plain"], out["mtp"], strict=True)),
        "plain_equals_ours": sum(a == b for a, b in zip(out["plain"], ours, strict=True)),
        "tokens_per_forward_plain": made / passes["plain"],
        "tokens_per_forward_mtp": made / passes["mtp"],
    }


def answers(model: Any, tokenizer: Any, ids: list[list[int]], tokens: int) -> list[list[int]]:
    engine = Engine(
        model,
        slots=len(ids),
        max_length=max(map(len, ids)) + tokens,
        used_vocab=tokenizer.vocab_size,
    )
    stop = (tokenizer.eos_id, tokenizer.doc_end_id)
    requests = [
        Request(n, prompt, tokens, temperature=0.0, stop_ids=stop) for n, prompt in enumerate(ids)
    ]
    return [completion.token_ids.tolist() for completion in engine.run(requests)]


if __name__ == "__main__":
    main()
