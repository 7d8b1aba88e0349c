"""Decoding speed of transformers' `generate`, as a peer of benchmarks/decode.py.

    python benchmarks/peers/transformers_decode.py runs/nano/hf/rl --rounds 5

Greedy, one static batch, answers of a fixed length; prefill counts. `turns.py` says how to take
turns.
"""

from __future__ import annotations

import os
import sys

from turns import Prompts, parse, take_turns

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    # Libraries print to stdout; only JSON may go there.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        options.folder, trust_remote_code=True, dtype=getattr(torch, options.dtype)
    ).eval()
    model.generation_config.eos_token_id = None  # answers go on to the full length

    @torch.inference_mode()
    def generate(prompts: Prompts) -> int:
        ids = torch.tensor(prompts)
        answers = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=options.tokens,
            pad_token_id=0,
        )
        return answers[:, ids.shape[1] :].numel()

    take_turns(options, generate, out)


if __name__ == "__main__":
    sys.exit(main())
