"""The native engine and vLLM on one model folder: the same greedy text, the same share of drafts?

    mimo export runs/nano --to vllm --dtype float32
    .venv-vllm/bin/python benchmarks/vllm_mtp.py runs/nano/vllm/rl --native runs/nano/rl --json -

Both answer the held-out problems of the run greedily in float32 with one draft a step (`make
test-vllm` makes .venv-vllm). Answers must be equal token for token; where they part, the native
model's own logits must show a tie within rounding. tests_vllm/ uses the same functions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openmimo.errors import UserError
from openmimo.evals.exam import read_problems
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.checkpoint import load_release
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

# Read when vllm is imported. One process, so that an error is a traceback and not a lost worker;
# no thread binding, because the native engine computes in the same process.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TIE = 1e-3
"""Two logits that differ by less are equal within the rounding of float32 (theirs is about 10)."""


@dataclass(frozen=True)
class Greedy:
    """Greedy answers to some prompts.

    answers: token ids without the prompt, the stop token included.
    drafts, accepted: over all prompts. The engines agree on what a draft is: a step that checks
        one drafted token. They differ by the first token of an answer, which vLLM takes from the
        prefill, without a draft.
    """

    answers: list[list[int]]
    drafts: int
    accepted: int

    @property
    def acceptance(self) -> float:
        """Share of the drafts that were accepted; 0 without drafts."""
        return self.accepted / self.drafts if self.drafts else 0.0


def answer(
    model: MiMo,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    stop_ids: Sequence[int] = (),
) -> Greedy:
    """The native engine's answers, at most `lengths` tokens long, with one draft a step."""
    engine = Engine(
        model,
        drafts=1,
        slots=min(64, len(prompts)),
        max_length=max(len(p) + length for p, length in zip(prompts, lengths, strict=True)),
        used_vocab=tokenizer.vocab_size,
    )
    done = engine.run(
        [
            Request(n, prompt, length, temperature=0, stop_ids=stop_ids)
            for n, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        ]
    )
    stats = engine.stats()
    tokens = [completion.token_ids.tolist() for completion in done]
    return Greedy(tokens, stats.drafts_offered[0], stats.drafts_accepted[0])


def answer_as_vllm_does(
    model: MiMo, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], greedy: Greedy
) -> Greedy:
    """`greedy` once more, with the drafts that vLLM would make.

    vLLM drafts from the second token on, and its MTP layer sees zeros instead of the embedding at
    position 0 (`mtp_mask_first`). The text is the same.
    """
    long = [n for n, tokens in enumerate(greedy.answers) if len(tokens) > 1]
    starts = [[*prompts[n], greedy.answers[n][0]] for n in long]
    config = model.config
    model.config = config.model_copy(update={"mtp_mask_first": True})
    try:
        again = answer(model, tokenizer, starts, [len(greedy.answers[n]) - 1 for n in long])
    finally:
        model.config = config
    whole = [list(tokens) for tokens in greedy.answers]
    for n, rest in zip(long, again.answers, strict=True):
        whole[n] = [*greedy.answers[n][:1], *rest]
    return Greedy(whole, again.drafts, again.accepted)


class Vllm:
    """vLLM on a model folder. A context manager, as each holds gigabytes until it is closed.

    Args:
        folder: what `mimo export` or `mimo release` wrote.
        drafts: tokens to draft a step, 0 or 1.
        dtype: to compute in; float32 has the native engine's numerics up to the order of sums.
        trust_remote_code: needed for the MiMo forms, not for the Qwen2 one.
    """

    def __init__(
        self,
        folder: Path,
        drafts: int = 1,
        dtype: str = "float32",
        trust_remote_code: bool = True,
    ) -> None:
        from vllm import LLM

        mtp = {"method": "mtp", "num_speculative_tokens": drafts} if drafts else None
        self.llm = LLM(
            str(folder),
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            speculative_config=mtp,
            disable_log_stats=False,  # counts drafts
            enforce_eager=True,  # compiling takes longer than all answers of a small model
            kv_cache_memory_bytes=2**28,
            gpu_memory_utilization=0.1,  # on a CPU: the share of memory that must be free
            max_num_seqs=64,
        )

    def __enter__(self) -> Vllm:
        return self

    def __exit__(self, *error: object) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()

    def answer(
        self, prompts: Sequence[Sequence[int]], length: int, stop_ids: Sequence[int] = ()
    ) -> Greedy:
        """vLLM's answers, at most `length` tokens long; without `stop_ids` exactly so long."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        before = self._counters()
        settings = SamplingParams(
            temperature=0,
            max_tokens=length,
            stop_token_ids=list(stop_ids),
            ignore_eos=not stop_ids,
            detokenize=False,
        )
        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            settings,
            use_tqdm=False,
        )
        drafts, accepted = (
            after - start for after, start in zip(self._counters(), before, strict=True)
        )
        return Greedy([list(output.outputs[0].token_ids) for output in outputs], drafts, accepted)

    def _counters(self) -> tuple[int, int]:
        values = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        name = "vllm:spec_decode_num_{}_tokens"
        return values.get(name.format("draft"), 0), values.get(name.format("accepted"), 0)


@dataclass(frozen=True)
class Parting:
    """Where two answers to a prompt part for the first time.

    prompt, position: number of the prompt; index of the token in the answers.
    margin: the native model's logit of its own token minus that of the other's, never negative up
        to rounding. Infinite if one answer ends where the other goes on.
    """

    prompt: int
    position: int
    margin: float

    @property
    def tied(self) -> bool:
        """Whether rounding explains it."""
        return self.margin < TIE


def partings(
    model: MiMo, prompts: Sequence[Sequence[int]], ours: Greedy, theirs: Greedy
) -> list[Parting]:
    """The first difference of every pair of answers that are not equal."""
    found = []
    for n, (mine, other) in enumerate(zip(ours.answers, theirs.answers, strict=True)):
        if mine == other:
            continue
        same = sum(1 for _ in _equal_start(mine, other))
        margin = float("inf")
        if same < min(len(mine), len(other)):
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompts[n], *mine[:same]]]))[0, -1]
            margin = float(logits[mine[same]] - logits[other[same]])
        found.append(Parting(n, same, margin))
    return found


def _equal_start(mine: Sequence[int], other: Sequence[int]) -> Iterable[int]:
    for a, b in zip(mine, other, strict=False):
        if a != b:
            return
        yield a


def heldout(folder: Path) -> Path:
    """The held-out problems of the run that a folder lies in."""
    for run in folder.resolve().parents:
        if (path := run / "stages" / "data" / "problems" / "heldout.jsonl").exists():
            return path
    raise UserError(f"{folder} lies in no run: name a file of problems with --problems")


def measure(
    folder: Path, native: Path, problems: Path, count: int, length: int, dtype: str
) -> dict[str, Any]:
    """vLLM with `folder` and the native engine with `native` on `count` problems of a file."""
    model, tokenizer = load_release(native, dtype=getattr(torch, dtype))
    questions = [record["prompt"] for record in read_problems(problems).values()]
    count = min(count, len(questions))
    spread = [questions[n * len(questions) // count] for n in range(count)]
    prompts = [tokenizer.chat_prompt(question) for question in spread]
    stop_ids = (tokenizer.eos_id, tokenizer.doc_end_id)

    began = time.perf_counter()
    ours = answer(model, tokenizer, prompts, [length] * count, stop_ids)
    native_seconds = time.perf_counter() - began
    alike = answer_as_vllm_does(model, tokenizer, prompts, ours)
    with Vllm(folder, dtype=dtype) as vllm:
        began = time.perf_counter()
        theirs = vllm.answer(prompts, length, stop_ids)
        vllm_seconds = time.perf_counter() - began
    parted = partings(model, prompts, ours, theirs)
    return {
        "dtype": dtype,
        "prompts": count,
        "tokens": sum(map(len, ours.answers)),
        "identical": count - len(parted),
        "ties": sum(parting.tied for parting in parted),
        "native_acceptance": ours.acceptance,
        "native_acceptance_as_vllm": alike.acceptance,
        "vllm_acceptance": theirs.acceptance,
        "native_drafts": ours.drafts,
        "native_drafts_as_vllm": alike.drafts,
        "vllm_drafts": theirs.drafts,
        "native_accepted": ours.accepted,
        "native_accepted_as_vllm": alike.accepted,
        "vllm_accepted": theirs.accepted,
        "native_seconds": native_seconds,
        "vllm_seconds": vllm_seconds,
    }


def main() -> None:
    """Measure and print; write the figures as JSON with `--json FILE` (`-`: standard output)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for vLLM: an exported folder with an MTP layer")
    parser.add_argument("--native", type=Path, help="for the native engine (default: FOLDER)")
    parser.add_argument("--problems", type=Path, help="default: the run's held-out ones")
    parser.add_argument("--count", type=int, default=600, help="problems, evenly spaced")
    parser.add_argument("--length", type=int, default=160, help="most tokens of an answer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    options = parser.parse_args()
    figures = measure(
        options.folder,
        options.native or options.folder,
        options.problems or heldout(options.folder),
        options.count,
        options.length,
        options.dtype,
    )
    text = json.dumps(figures, indent=2)
    if options.json and options.json != "-":
        Path(options.json).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
