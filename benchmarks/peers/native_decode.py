"""Decoding speed of the native engine, as a side of benchmarks/decode.py.

    python benchmarks/peers/native_decode.py runs/nano/release/RL --rounds 5

Greedy, answers of a fixed length; prefill counts. `turns.py` says how to take turns.
"""

from __future__ import annotations

import os
import sys

import torch
from turns import Prompts, parse, take_turns

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.checkpoint import load_release


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    model = load_release(options.folder, dtype=getattr(torch, options.dtype))[0].eval()
    engines = {
        batch: Engine(model, slots=batch, max_length=options.prompt + options.tokens)
        for batch in options.batches
    }

    def generate(prompts: Prompts) -> int:
        requests = [Request(n, ids, options.tokens, temperature=0) for n, ids in enumerate(prompts)]
        return sum(len(done.token_ids) for done in engines[len(prompts)].run(requests))

    take_turns(options, generate, os.fdopen(os.dup(1), "w"))


if __name__ == "__main__":
    sys.exit(main())
