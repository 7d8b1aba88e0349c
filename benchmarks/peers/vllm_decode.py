"""Decoding speed of vLLM on a CPU, as a peer of benchmarks/decode.py.

    .venv-vllm/bin/python benchmarks/peers/vllm_decode.py runs/nano/vllm/rl --rounds 5

Offline `LLM`, greedy, answers of a fixed length; prefill counts. `turns.py` says how to take turns.

What was tried on nano (float32, one thread, 64 tokens an answer, tokens a second of CPU time, batch
1 / 32 / 128, medians of 5 alternating rounds): eager 195 / 3330 / 4631, compiled 405 / 3764 / 5167,
Intel's OpenMP preloaded as vLLM advises 246 / 3295 / 4570, both 388 / 3965 / 5073. So: compiled
(which starts half a minute later), without a preload. In this process rather than in one of its
own, which cost about a tenth when measured one after the other.

On a CPU without instructions for bfloat16 vLLM is slower in it than in float32 (SmolLM2's shape,
eager, batch 1 / 8 / 32, one after the other: 12.8 / 20.8 / 22.7 against 13.1 / 45.1 / 98.2): give
the dtype that suits the machine. Cores: OMP_NUM_THREADS and taskset, as vLLM binds no threads here.
"""

from __future__ import annotations

import argparse
import os
import sys

from turns import Prompts, parse, take_turns

# Read when vllm is imported.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drafts", type=int, default=0, help="tokens its MTP layer drafts a step")
    parser.add_argument("--eager", action="store_true", help="no torch.compile")


def main() -> None:
    options = parse(__doc__.splitlines()[0], add_arguments)
    # Libraries print to stdout; only JSON may go there.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    rows = max(options.batches)
    llm = LLM(
        str(options.folder),
        trust_remote_code=True,
        dtype=options.dtype,
        speculative_config=(
            {"method": "mtp", "num_speculative_tokens": options.drafts} if options.drafts else None
        ),
        enforce_eager=options.eager,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,  # every prompt is new: it would only cost
        max_model_len=options.prompt + options.tokens,
        max_num_seqs=rows,
        max_num_batched_tokens=max(8192, rows * options.prompt),  # a whole batch is one prefill
        kv_cache_memory_bytes=2**30,
        gpu_memory_utilization=0.1,  # on a CPU: the share of memory that must be free
    )
    settings = SamplingParams(
        temperature=0, max_tokens=options.tokens, ignore_eos=True, detokenize=False
    )

    def generate(prompts: Prompts) -> int:
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        outputs = llm.generate(inputs, settings, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    take_turns(options, generate, out)


if __name__ == "__main__":
    sys.exit(main())
