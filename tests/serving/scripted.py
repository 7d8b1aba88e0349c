"""An engine that says what it is told, with numbers that a test can know.

Importing this in a server's process makes `mimo serve` use it.
"""

import time
from dataclasses import dataclass, field

import numpy as np

from openmimo.inference.protocol import Completion, EngineStats, Tokens
from openmimo.serving import serve

SAID = (
    "<think>\nThe user says <b>hello</b>.\n\nI think.\n</think>\n\n"
    "Hello <img src=x onerror=\"document.title='broken'\"> naïve € cat!"
)


def tokens(ids, alternatives):
    """Token n has log-prob -n/4; its alternatives are it and the ids after it, each 1 less."""
    log_probs = -np.arange(len(ids), dtype=np.float32) / 4
    ranks = np.arange(alternatives)
    return Tokens(
        np.array(ids, np.int32),
        log_probs,
        (np.array(ids, np.int32).reshape(-1, 1) + ranks).astype(np.int32),
        (log_probs[:, None] - ranks).astype(np.float32),
    )


def prompt_scores(request):
    scores = tokens(list(request.prompt_ids), request.alternatives)
    scores.log_probs[0] = np.nan
    scores.top_ids[0] = -1
    return scores


@dataclass
class ScriptedEngine:
    """Says SAID to every prompt, three tokens a step; two of three count as drafts."""

    script: list[int]
    eos: int
    running: dict = field(default_factory=dict)
    counters: EngineStats = field(
        default_factory=lambda: EngineStats(
            4, drafts_offered=[0, 0], drafts_reached=[0, 0], drafts_accepted=[0, 0]
        )
    )

    def submit(self, requests):
        self.running |= {request.id: [request, 0] for request in requests}

    def step(self):
        time.sleep(0.02)
        done = []
        for request_id, row in list(self.running.items()):
            row[1] += 3
            self.counters.generated_tokens += 3
            self.counters.drafts_offered[0] += 4
            self.counters.drafts_accepted[0] += 3
            if row[1] >= min(len(self.script) + 1, row[0].max_new_tokens):
                done.append(self.complete(request_id, "length"))
        return done

    def complete(self, request_id, reason):
        request, _ = self.running[request_id]
        made = self.generated(request_id)
        del self.running[request_id]
        if made.token_ids[-1:] == [self.eos] and self.eos in request.stop_ids:
            reason = "stop"
        prompt = prompt_scores(request) if request.score_prompt else None
        return Completion(
            request_id, made.token_ids, made.log_probs, reason, made.top_ids, made.top_log_probs,
            prompt,
        )  # fmt: skip

    def generated(self, request_id, start=0):
        request, count = self.running[request_id]
        ids = [*self.script, self.eos][: min(count, request.max_new_tokens)]
        made = tokens(ids, request.alternatives)
        return Tokens(
            made.token_ids[start:], made.log_probs[start:], made.top_ids[start:],
            made.top_log_probs[start:],
        )  # fmt: skip

    def abort(self, ids):
        return [self.complete(request_id, "aborted") for request_id in ids & self.running.keys()]

    def stats(self):
        self.counters.active = len(self.running)
        return self.counters


def build_engine(model, tokenizer, settings, max_length):
    return ScriptedEngine(tokenizer.encode(SAID), tokenizer.eos_id)


serve.build_engine = build_engine
