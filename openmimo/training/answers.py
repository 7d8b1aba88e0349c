"""A model's own answers to the prompts of the data stage, as training text for its MTP layers.

What an MTP layer must guess is what its own trunk will say next; nothing is closer to that than
what the trunk has said (self-distillation, as in Medusa-2 and EAGLE).

    <stage>/answers/00000.jsonl    {"prompt_ids", "answer_ids"}, `CHUNK` of them
    <stage>/acceptance.json        drafts accepted before and after the training

The answers are made a chunk at a time, and a chunk's file appears whole: an interrupted chunk is
made again, in the same company, so that it comes out the same to the last bit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openmimo.config.schema import Recipe
from openmimo.data.documents import read_records, write_records
from openmimo.errors import UserError
from openmimo.inference.acceptance import measure_acceptance
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request, RequestId
from openmimo.inference.sampling import sample_seed
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.runs import Run, Stage, atomic_write
from openmimo.tokenizer import Tokenizer
from openmimo.training.batch import Segment

CHUNK = 64
"""Prompts answered together."""
MEASURED = 48
"""Held-out prompts on which acceptance is measured."""
MEASURED_WITH = {"greedy": (0.0, 1.0), "sampled": (0.6, 0.95)}
"""Temperature and top-p: greedy, and the report's evaluation sampling."""


class Answers:
    """The answers of one `mtp_heads` stage; settings are those of `recipe.mtp_heads`."""

    def __init__(self, recipe: Recipe, run: Run, stage: Stage, tokenizer: Tokenizer) -> None:
        self._recipe, self._config = recipe, recipe.mtp_heads
        self._run, self._stage, self._tokenizer = run, stage, tokenizer
        self._folder = stage.dir / "answers"
        self._data = run.dir / "stages" / "data"

    def generate(self, model: MiMo) -> bool:
        """Answer every prompt that is not answered yet; False if it was interrupted.

        Raises:
            UserError: the data stage has fewer prompts than asked for, or one leaves no room for an
                answer.
        """
        self._folder.mkdir(exist_ok=True)
        config = self._config
        requests = self._requests(
            "generations", self._prompts(), config.generations, config.generation_temperature, 1.0
        )
        chunks = [requests[start : start + CHUNK] for start in range(0, len(requests), CHUNK)]
        done = sum((self._folder / _name(number)).exists() for number in range(len(chunks)))
        with Progress("mtp_heads answers", len(chunks), start=done) as progress:
            for number, chunk in enumerate(chunks):
                path = self._folder / _name(number)
                if path.exists():
                    continue
                lines = self._answer(model, chunk)
                if lines is None:
                    return False
                write_records(path, lines)
                self._stage.save_clock()
                progress.step(number + 1, tokens=sum(len(line["answer_ids"]) for line in lines))
        return True

    def segments(self) -> list[Segment]:
        """`read_answers` of this stage."""
        return read_answers(self._folder)

    def measure(self, model: MiMo, when: str) -> None:
        """Add acceptance on held-out prompts, greedy and sampled, to acceptance.json."""
        path = self._stage.dir / "acceptance.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        done = found.setdefault(when, {})
        prompts = self._texts("problems/heldout.jsonl")
        model.eval()
        for name, (temperature, top_p) in MEASURED_WITH.items():
            if name in done:
                continue
            self._run.interrupt.check()
            requests = self._requests("acceptance", prompts, MEASURED, temperature, top_p)
            measured = measure_acceptance(model, requests, self._tokenizer.vocab_size)
            done[name] = measured | {"temperature": temperature, "top_p": top_p}
            print(f"mtp_heads: {when} training, {name}: {_summary(measured)}", flush=True)
            atomic_write(path, json.dumps(found, indent=2) + "\n")

    def _answer(self, model: MiMo, requests: list[Request]) -> list[dict[str, Any]] | None:
        """The answers to a chunk; None if a stop was requested meanwhile."""
        engine = Engine(
            model,
            slots=len(requests),
            max_length=max(len(r.prompt_ids) + r.max_new_tokens for r in requests),
            used_vocab=self._tokenizer.vocab_size,
        )
        engine.submit(requests)
        answers: dict[RequestId, list[int]] = {}
        while len(answers) < len(requests):
            if self._run.interrupt.requested:
                return None
            for completion in engine.step():
                answers[completion.request_id] = completion.token_ids.tolist()
        return [
            {"prompt_ids": list(request.prompt_ids), "answer_ids": answers[request.id]}
            for request in requests
        ]

    def _requests(
        self, purpose: str, prompts: list[str], count: int, temperature: float, top_p: float
    ) -> list[Request]:
        """Requests for `count` prompts, evenly spaced, so that every kind is among them."""
        if len(prompts) < count and purpose == "generations":
            raise UserError(
                f"mtp_heads.generations is {count}, but the data stage has only {len(prompts)} "
                "prompts: ask for fewer, or raise data.rl_problems or data.sft_queries"
            )
        count = min(count, len(prompts))
        chosen = [prompts[index * len(prompts) // count] for index in range(count)]
        return [
            replace(self._request(purpose, n, text), temperature=temperature, top_p=top_p)
            for n, text in enumerate(chosen)
        ]

    def _request(self, purpose: str, number: int, text: str) -> Request:
        prompt = self._tokenizer.chat_prompt(text)
        context = min(self._recipe.model.max_position_embeddings, self._config.length)
        room = context - len(prompt)
        if room < 1:
            raise UserError(
                f"a prompt of the data stage has {len(prompt)} tokens, which leaves no room for an "
                f"answer in mtp_heads.length = {context}"
            )
        return Request(
            id=number,
            prompt_ids=prompt,
            max_new_tokens=min(self._config.generation_tokens, room),
            seed=sample_seed(self._recipe.seed, purpose, number),
            stop_ids=(self._tokenizer.eos_id, self._tokenizer.doc_end_id),
        )

    def _prompts(self) -> list[str]:
        """Every distinct training prompt of the data stage, in order."""
        texts = self._texts("sft.jsonl") + self._texts("problems/rl.jsonl")
        return list(dict.fromkeys(texts))

    def _texts(self, file: str) -> list[str]:
        return [record["prompt"] for _, record in read_records(self._data / file, "prompt")]


def read_answers(folder: Path) -> list[Segment]:
    """The answers in `folder` as samples whose loss is on the answer alone."""
    samples = []
    for path in sorted(folder.glob("*.jsonl")):
        for _, record in read_records(path):
            prompt, answer = record["prompt_ids"], record["answer_ids"]
            ids = np.asarray([*prompt, *answer], dtype=np.int64)
            samples.append(Segment(ids, loss_from=len(prompt)))
    return samples


def _name(chunk: int) -> str:
    return f"{chunk:05d}.jsonl"


def _summary(measured: dict[str, Any]) -> str:
    shares = zip(measured["acceptance"], measured["low"], measured["high"], strict=True)
    text = " / ".join(f"{100 * a:.1f} ({100 * lo:.1f}-{100 * hi:.1f})" for a, lo, hi in shares)
    return f"{text} % of the drafts accepted, {measured['tokens_per_forward']:.2f} tokens a forward"
