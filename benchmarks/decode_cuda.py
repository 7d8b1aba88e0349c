"""Decoding speed on a GPU, in bfloat16, beside transformers' generate.

    python benchmarks/decode_cuda.py --json -

Random weights in the shapes of recipes (speed does not depend on values), random prompts, greedy,
answers of a fixed length; prefill counts. {recipe: {batch: {native, native_eager, transformers}}}
are median tokens a second; `native_eager` is our engine without CUDA graphs. `bandwidth_share` is,
for plain decoding at batch 1, the rate at which weights are read over that of a copy on the same
GPU, counting bytes read and written: 1 is what no engine without drafts can pass.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from openmimo.config.load import load_config
from openmimo.config.schema import ModelConfig, Recipe
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo
from openmimo.training.start import take_model

Generate = Callable[[list[list[int]]], int]


def model_config(recipe: str) -> ModelConfig:
    """The shape of a preset or a TOML file."""
    return load_config(Recipe, recipe, complete=take_model).model


def native(config: ModelConfig, options: argparse.Namespace, fixed_shapes: bool) -> Generate:
    """Our engine with random weights."""
    with torch.device("cuda"):
        model = MiMo(config).to(torch.bfloat16)
    model.init_weights()
    engine = Engine(
        model,
        slots=max(options.batches),
        max_length=options.prompt + options.tokens,
        consume=True,
        fixed_shapes=fixed_shapes,
    )

    def generate(prompts: list[list[int]]) -> int:
        requests = [
            Request(n, tuple(ids), options.tokens, temperature=0) for n, ids in enumerate(prompts)
        ]
        return sum(len(done.token_ids) for done in engine.run(requests))

    return generate


def transformers(config: ModelConfig, options: argparse.Namespace) -> Generate | None:
    """`generate` of a Qwen2 of the same shape; None where transformers is not installed."""
    try:
        from transformers import AutoModelForCausalLM, Qwen2Config
    except ImportError:
        return None
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
    )  # fmt: skip
    theirs = Qwen2Config(
        **{name: getattr(config, name) for name in names}, tie_word_embeddings=False
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(theirs, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]]) -> int:
        ids = torch.tensor(prompts, device="cuda")
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=options.tokens,
            max_new_tokens=options.tokens,
            pad_token_id=0,
        )
        return out[:, ids.shape[1] :].numel()

    return generate


def speeds(generate: Generate | None, vocab: int, options: argparse.Namespace) -> dict[int, Any]:
    """Median tokens a second for each batch; the first round is not counted."""
    if generate is None:
        return dict.fromkeys(options.batches)
    found: dict[int, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for batch in options.batches:
        rounds = []
        for _ in range(options.rounds + 1):
            prompts = torch.randint(vocab, (batch, options.prompt), generator=generator).tolist()
            torch.cuda.synchronize()
            began = time.perf_counter()
            count = generate(prompts)
            torch.cuda.synchronize()
            rounds.append(count / (time.perf_counter() - began))
        found[batch] = statistics.median(rounds[1:])
        print(f"  batch {batch}: {found[batch]:.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy on the GPU."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2 * source.numel() / (time.perf_counter() - began)


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of bfloat16 that a decode step of one row reads: all but the embedding's rows."""
    with torch.device("meta"):
        model = MiMo(config.model_copy(update={"num_nextn_predict_layers": 0}))
    whole = sum(parameter.numel() for parameter in model.parameters())
    return 2 * (whole - model.model.embed_tokens.weight.numel())


def main() -> None:
    """Measure; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["smol", "mimo-7b"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="the median round counts")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("decode_cuda.py: there is no CUDA GPU here")
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bandwidth": copy_bandwidth(),
    }
    for recipe in options.recipes:
        config = model_config(recipe)
        engines: dict[str, dict[int, Any]] = {}
        for name in ("native", "native_eager", "transformers"):
            print(recipe, name, file=sys.stderr, flush=True)
            if name == "transformers":
                generate = transformers(config, options)
            else:
                generate = native(config, options, fixed_shapes=name == "native")
            engines[name] = speeds(generate, config.vocab_size, options)
            del generate
            gc.collect()
            torch.cuda.empty_cache()
        figures[recipe] = {
            str(batch): {name: of[batch] for name, of in engines.items()}
            for batch in options.batches
        }
        if 1 in options.batches:
            read = weight_bytes(config) * engines["native"][1]
            figures[recipe]["bandwidth_share"] = read / figures["copy_bandwidth"]
    text = json.dumps(figures, indent=2)
    if options.json == "-":
        print(text)
    elif options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
