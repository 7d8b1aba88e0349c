"""Keeps MTP layers in step with a trunk that moves, at the price of a few small updates.

When RL changes the trunk, the drafts of frozen MTP layers fit worse and worse. The engine has the
trunk's hidden states of every answer anyway, and they are all that an MTP layer learns from: no
forward pass of the trunk is needed. An option of RL, off in the recipe, which freezes the layers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo
from openmimo.training.batch import Batch, Segment, batch_rows, pack
from openmimo.training.loss import backward_step


@dataclass(frozen=True)
class _Answer:
    segment: Segment
    hidden: Tensor


class OnlineMTP:
    """Collects answers and tunes the MTP layers on them.

    Args:
        model: whose MTP layers are tuned; everything else stays as it is.
        steps: optimiser steps a refresh.
        learning_rate: constant. Each refresh begins with a fresh AdamW, so that nothing but the
            weights has to be kept in checkpoints.
        tokens: most tokens that are kept, the latest ones; each step reads all of them.
        tokens_per_microbatch: read at once.
    """

    def __init__(
        self,
        model: MiMo,
        steps: int,
        learning_rate: float,
        tokens: int,
        tokens_per_microbatch: int,
    ) -> None:
        self._model, self._steps, self._rate = model, steps, learning_rate
        self._capacity, self._microbatch = tokens, tokens_per_microbatch
        self._answers: deque[_Answer] = deque()
        self._tokens = 0

    def collect(self, request: Request, tokens: NDArray[np.int64], hidden: Tensor) -> None:
        """Keep an answer; the `collect` of `inference.engine.Engine`."""
        if len(tokens) < 3:  # layer 0 reads a token and predicts the one after the next
            return
        self._answers.append(_Answer(Segment(tokens, len(request.prompt_ids)), hidden))
        self._tokens += len(tokens)
        while self._tokens > self._capacity and len(self._answers) > 1:
            self._tokens -= len(self._answers.popleft().segment.ids)

    def refresh(self) -> tuple[list[float], list[float]]:
        """Tune the layers on what was collected, and forget it.

        Returns:
            each layer's loss a target in nats, before and in the last step. Empty lists if
            nothing was collected.
        """
        if not self._answers:
            return [], []
        batch = self._batch()
        parameters = [p for layer in self._model.mtp_layers for p in layer.parameters()]
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        layers = range(len(self._model.mtp_layers))
        optimizer = torch.optim.AdamW(parameters, lr=self._rate, weight_decay=0.0)
        history = []
        for _ in range(self._steps):
            _, found = backward_step(
                self._model, batch, layers, 1.0, self._microbatch, main=False, detach_after=0
            )
            history.append(found)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._model.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        self._answers.clear()
        self._tokens = 0
        return history[0], history[-1]

    def _batch(self) -> Batch:
        """All answers, packed, with their hidden states."""
        answers = list(self._answers)
        lengths = [len(answer.segment.ids) for answer in answers]
        length = max(lengths)
        rows = pack(lengths, length)
        batch = batch_rows([[answers[n].segment for n in row] for row in rows], length, pad_id=0)
        weight = self._model.lm_head.weight
        hidden = torch.zeros(*batch.ids.shape, weight.shape[1], dtype=weight.dtype)
        for number, row in enumerate(rows):
            start = 0
            for n in row:
                # The last token's state is not there, and nothing is predicted from it.
                hidden[number, start : start + lengths[n] - 1] = answers[n].hidden
                start += lengths[n]
        device = weight.device
        return Batch(
            batch.ids.to(device), batch.positions.to(device), batch.targets.to(device),
            hidden.to(device),
        )  # fmt: skip
