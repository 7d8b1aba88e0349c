"""Decoding speed of the native engine, as a side of benchmarks/decode.py.

    python benchmarks/peers/native_decode.py runs/nano/release/RL --rounds 5

Greedy, answers of a fixed length; prefill counts. `turns.py` says how to take turns. A batch can
carry a number of drafts: "8:2" is a batch of 8 with 2, "8:auto" lets the engine choose.
"""

from __future__ import annotations

import os
import sys

import torch
from turns import Prompts, parse, take_turns

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.checkpoint import load_model


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    model = load_model(options.folder, dtype=getattr(torch, options.dtype)).eval()
    engines: dict[tuple[int, str], Engine] = {}
    for name in options.batches:
        batch, _, drafts = name.partition(":")
        engines[name] = Engine(
            model,
            slots=int(batch),
            max_length=options.prompt + options.tokens,
            drafts="auto" if drafts == "auto" else int(drafts or 0),
        )

    def generate(prompts: Prompts, name: str) -> int:
        requests = [Request(n, ids, options.tokens, temperature=0) for n, ids in enumerate(prompts)]
        return sum(len(done.token_ids) for done in engines[name].run(requests))

    take_turns(options, generate, os.fdopen(os.dup(1), "w"))


if __name__ == "__main__":
    sys.exit(main())
