"""What a prompt is asked for in RL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from openmimo.config.schema import RLConfig
from openmimo.errors import UserError
from openmimo.inference.protocol import Request, RequestId
from openmimo.rollout.records import Prompt
from openmimo.tokenizer import Tokenizer


class Requests:
    """Makes the requests of samples: temperature 1, nothing cut off, as anything else would bias
    the ratio of GRPO. An answer ends where it says so or where prompt and answer are full.

    Args:
        prompts: token ids of those that will be asked.
        context: the model's, in tokens.

    Raises:
        UserError: a prompt leaves no room for an answer.
    """

    def __init__(
        self,
        prompts: Iterable[Sequence[int]],
        tokenizer: Tokenizer,
        config: RLConfig,
        context: int,
    ) -> None:
        longest = max(map(len, prompts))
        if longest >= context:
            raise UserError(f"a prompt has {longest} tokens and the model's context only {context}")
        self._most = config.max_new_tokens
        self._stop_ids = (tokenizer.eos_id, tokenizer.doc_end_id)
        self.max_length = min(longest + config.max_new_tokens, context)

    def __call__(self, prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        length = min(self._most, self.max_length - len(prompt.ids))
        seed = prompt.sample_seeds[sample]
        return Request(request_id, prompt.ids, length, seed=seed, stop_ids=self._stop_ids)
