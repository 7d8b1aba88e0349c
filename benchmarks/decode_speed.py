"""Decoding speed of the native engine against transformers' `generate` with the same weights.

    python benchmarks/decode_speed.py --json -

Both sample at temperature 1 from a Qwen2 trunk with random weights, in turns. "even": all answers
are equally long, so only the speed of a step counts. "ragged": answer lengths vary, as in RL; the
engine refills a row as soon as it ends, the peer waits for the longest answer of its batch.
Ratios above 1 say the engine is faster.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from openmimo.config.schema import ModelConfig
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo


def make_model(hidden: int, layers: int) -> MiMo:
    """A trunk with the shape of the nano recipe."""
    config = ModelConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=1024,
        num_nextn_predict_layers=0,
    )
    model = MiMo(config).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def make_requests(count: int, prompt: int, answer: int, ragged: bool) -> list[Request]:
    """Groups of 8 that share a prompt; ragged answers have a quarter to all of `answer` tokens."""
    rng = random.Random(0)
    prompts = [[rng.randrange(1024) for _ in range(prompt)] for _ in range(count // 8 + 1)]
    return [
        Request(i, prompts[i // 8], rng.randint(answer // 4, answer) if ragged else answer, seed=i)
        for i in range(count)
    ]


def time_engine(engine: Engine, requests: list[Request]) -> float:
    """Tokens per second, prefill included."""
    start = time.perf_counter()
    tokens = sum(len(completion.token_ids) for completion in engine.run(requests))
    return tokens / (time.perf_counter() - start)


def peer_model(model: MiMo) -> Any:
    """The same weights in transformers' Qwen2."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ours = model.config
    fields = ours.model_dump(exclude={"num_nextn_predict_layers", "mtp_hidden", "mtp_mask_first"})
    peer = Qwen2ForCausalLM(Qwen2Config(**fields, tie_word_embeddings=False)).eval()
    peer.load_state_dict(model.state_dict())
    return peer


@torch.inference_mode()
def time_peer(peer: Any, requests: list[Request], rows: int) -> float:
    """The same: static batches of `rows`, each as long as its longest answer."""
    start = time.perf_counter()
    for first in range(0, len(requests), rows):
        batch = requests[first : first + rows]
        ids = torch.tensor([request.prompt_ids for request in batch])
        longest = max(request.max_new_tokens for request in batch)
        peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=longest,
            min_new_tokens=longest,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            pad_token_id=0,
        )
    tokens = sum(request.max_new_tokens for request in requests)
    return tokens / (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median tokens per second of both sides on both loads."""
    model = make_model(options.hidden, options.layers)
    engine = Engine(model, slots=options.rows, max_length=options.prompt + options.answer)
    peer = None if options.no_peer else peer_model(model)
    figures: dict[str, float] = {
        "rows": options.rows,
        "prompt_tokens": options.prompt,
        "answer_tokens": options.answer,
        "threads": torch.get_num_threads(),
    }
    for load in ("even", "ragged"):
        batches = 1 if load == "even" else 2
        requests = make_requests(
            batches * options.rows, options.prompt, options.answer, load == "ragged"
        )
        ours, theirs = [], []
        for _ in range(options.rounds):  # in turns: a busy machine slows both
            ours.append(time_engine(engine, requests))
            if peer is not None:
                theirs.append(time_peer(peer, requests, options.rows))
        figures[f"{load}_tokens_per_second"] = statistics.median(ours)
        if theirs:
            figures[f"{load}_peer_tokens_per_second"] = statistics.median(theirs)
            figures[f"{load}_ratio"] = statistics.median(ours) / statistics.median(theirs)
    return figures


def main() -> None:
    """Measure and print; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256, help="sequences decoded at once")
    parser.add_argument("--prompt", type=int, default=60, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=128, help="tokens of the longest answer")
    parser.add_argument("--hidden", type=int, default=128, help="width, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4, help="trunk layers")
    parser.add_argument("--rounds", type=int, default=3, help="the median round counts")
    parser.add_argument("--no-peer", action="store_true", help="measure the engine alone")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    figures = measure(options)
    if options.json == "-":
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:10.1f}")
        if options.json:
            Path(options.json).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
