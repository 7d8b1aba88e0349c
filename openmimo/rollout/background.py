"""Samples of the same weights that fill the slots nobody else needs: validation in the tail."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.rewards.verdict import Verdict, failed
from openmimo.rollout.records import Prompt
from openmimo.rollout.reward_line import RewardLine

_MARK = "background/"


class Background:
    """Samples to generate and score beside a step, at low priority.

    A step starts them in slots that no sample of its own waits for, and takes a slot back when it
    needs one: that sample starts again later, with the same seed. Once the step has its batch the
    rest is finished with all slots.

    Args:
        prompts: what to sample from.
        request: makes the request of a prompt's sample; it must have the id given.
        decode: token ids of a response to its text.
        on_sample: called with each sample and its verdict.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt] = (),
        request: Callable[[Prompt, int, RequestId], Request] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        on_sample: Callable[[Prompt, int, Completion, Verdict], None] | None = None,
    ) -> None:
        self._prompts, self._request = prompts, request
        self._decode, self._on_sample = decode, on_sample
        self._waiting = deque(
            (number, sample)
            for number, prompt in enumerate(prompts)
            for sample in range(len(prompt.sample_seeds))
        )
        self._running: dict[str, tuple[int, int]] = {}  # oldest first
        self._verdicts: set[asyncio.Task[Verdict]] = set()
        self._started = 0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._waiting or self._running or self._verdicts)

    @property
    def verdicts(self) -> Collection[asyncio.Task[Verdict]]:
        """Those still to come."""
        return self._verdicts

    @staticmethod
    def owns(request_id: str) -> bool:
        """Whether a request is one of ours."""
        return request_id.startswith(_MARK)

    def fill(self, slots: int) -> list[Request]:
        """Requests for so many free slots, as long as there are samples."""
        requests: list[Request] = []
        while self._waiting and len(requests) < slots:
            number, sample = self._waiting.popleft()
            # A new name each time: the engine may not have heard yet that the last one is aborted.
            self._started += 1
            request_id = f"{_MARK}{number}/{sample}/{self._started}"
            assert self._request is not None
            requests.append(self._request(self._prompts[number], sample, request_id))
            self._running[request_id] = (number, sample)
        return requests

    def yield_slot(self) -> str | None:
        """The request to abort for somebody who needs its slot: the youngest; None if none runs."""
        if not self._running:
            return None
        request_id = next(reversed(self._running))
        self.put_back(request_id)
        return request_id

    def put_back(self, request_id: str) -> None:
        """A request was aborted or lost; its sample has to start again."""
        self._waiting.appendleft(self._running.pop(request_id))

    def stop(self) -> list[str]:
        """Nothing more is started; the requests to abort."""
        self._waiting.clear()
        requests, self._running = list(self._running), {}
        return requests

    def score(
        self,
        request_id: str,
        completion: Completion,
        line: RewardLine,
        ended: Callable[[Exception | None], None],
    ) -> None:
        """A request has its answer; `ended` is called when its verdict was used, with the error if
        there was one."""
        number, sample = self._running.pop(request_id)
        prompt = self._prompts[number]
        task = asyncio.create_task(self._verdict(prompt, completion, line))
        self._verdicts.add(task)

        def use(task: asyncio.Task[Verdict]) -> None:
            self._verdicts.discard(task)
            if task.cancelled():
                return
            try:
                if self._on_sample is not None:
                    self._on_sample(prompt, sample, completion, task.result())
            except Exception as error:  # the event loop would log it and nothing else
                ended(error)
            else:
                ended(None)

        task.add_done_callback(use)

    async def _verdict(self, prompt: Prompt, completion: Completion, line: RewardLine) -> Verdict:
        if completion.finish_reason == "failed":
            return failed(f"the engine gave it up: {completion.error}")
        assert self._decode is not None
        return await line.score(prompt.problem, self._decode(completion.token_ids.tolist()))
