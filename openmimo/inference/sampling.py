"""Sampling as a pure function of logits, settings, seed and position.

The randomness is counter-based: the uniform number a row uses at a position is a hash of
(seed, position). So a request's sample does not depend on the requests that share its batch, on the
number of slots, on the order of arrival, or on how many tokens were drafted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.inference.protocol import Request

CANDIDATES = 256
"""Most likely tokens that are looked at first when a distribution is cut; rarely too few."""

BLOCK = 4096
"""Vocabularies larger than this are searched block by block."""


def sample_seed(*parts: object) -> int:
    """A 62-bit request seed that is a pure function of its parts (run seed, prompt, sample...)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


# Increment and multipliers of splitmix64 (Steele, Lea and Flood, 2014).
_GAMMA, _MIX_1, _MIX_2 = map(
    np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: a bijection that flips half the bits; products wrap."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on nothing but the arguments, multiples of 2**-53.

    Args:
        seeds: broadcastable with `positions`.
        positions: of the tokens that are drawn.
    """
    bits = _mix(_mix(seeds + _GAMMA) + positions.astype(np.uint64) * _GAMMA)
    return (_mix(bits + _GAMMA) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Settings:
    """How the tokens of R rows are drawn.

    temperature: float32 [R, 1, 1]; 1 where greedy.
    top_p, min_p: float32 [R, 1, 1]. top_k: int64 [R, 1, 1], the vocabulary's size for no limit.
    greedy, cut: bool [R, 1]; cut is true where top_p, top_k or min_p take something away.
    any_greedy, all_greedy, any_cut, all_cut, scaled: the same known on the host, over all rows;
        scaled says that some temperature is not 1.
    """

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    greedy: Tensor
    cut: Tensor
    any_greedy: bool
    all_greedy: bool
    any_cut: bool
    all_cut: bool
    scaled: bool

    @classmethod
    def of(
        cls, requests: Sequence[Request], vocab: int, device: torch.device | str = "cpu"
    ) -> Settings:
        """The settings of `requests`; top_k is at most the vocabulary."""
        greedy = [r.temperature == 0 for r in requests]
        top_k = [min(r.top_k or vocab, vocab) for r in requests]
        cut = [
            not g and (r.top_p < 1 or r.min_p > 0 or k < vocab)
            for r, g, k in zip(requests, greedy, top_k, strict=True)
        ]
        temperature = [r.temperature or 1.0 for r in requests]

        def column(values: Sequence[object], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        return cls(
            column(temperature, torch.float32)[..., None],
            column([r.top_p for r in requests], torch.float32)[..., None],
            column([r.min_p for r in requests], torch.float32)[..., None],
            column(top_k, torch.int64)[..., None],
            column(greedy, torch.bool),
            column(cut, torch.bool),
            any(greedy),
            all(greedy),
            any(cut),
            all(cut),
            any(t != 1 for t in temperature),
        )


def log_probabilities(logits: Tensor, settings: Settings) -> Tensor:
    """log softmax(logits / temperature): what reported log-probabilities refer to.

    A greedy row is reported at temperature 1: at temperature 0 every log-probability is 0.

    Args:
        logits: float [R, T, V] over the tokenizer's used ids only, so that an unused row of the
            head is never drawn.

    Returns:
        float32 [R, T, V].
    """
    logits = logits.float()
    if settings.scaled:
        logits = logits / settings.temperature
    return torch.log_softmax(logits, dim=-1)


def draw(log_probs: Tensor, settings: Settings, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row and step.

    Args:
        log_probs: from `log_probabilities`, [R, T, V].
        uniform: float64 [R, T], in [0, 1); greedy rows use none.

    Returns:
        tokens int64 [R, T] and their entries of `log_probs`, float32 [R, T].
    """
    if settings.all_greedy:
        best = log_probs.max(dim=-1)
        return best.indices, best.values
    if settings.all_cut:
        tokens = _draw_cut(log_probs, settings, uniform)
    else:
        tokens = pick(log_probs.exp(), uniform)
        if settings.any_cut:
            tokens = torch.where(settings.cut, _draw_cut(log_probs, settings, uniform), tokens)
    if settings.any_greedy:
        tokens = torch.where(settings.greedy, log_probs.argmax(dim=-1), tokens)
    return tokens, log_probs.gather(-1, tokens[..., None])[..., 0]


def _draw_cut(log_probs: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Draw from what top-p, top-k and min-p leave; most rows need few candidates for that."""
    vocab = log_probs.shape[-1]
    cut = settings.top_p, settings.top_k, settings.min_p
    values, order = log_probs.topk(min(CANDIDATES, vocab), dim=-1)
    probabilities = values.exp()
    kept = kept_tokens(probabilities, *cut)
    tokens = _pick_from(probabilities * kept, order, uniform)
    # Where the last candidate is kept, the next one might have been.
    short = kept[..., -1] & settings.cut & (settings.top_k[..., 0] > CANDIDATES)
    if vocab > CANDIDATES and short.any():
        row, step = short.nonzero(as_tuple=True)
        values, order = log_probs[row, step].sort(dim=-1, descending=True)
        probabilities = values.exp()
        kept = kept_tokens(probabilities, *(limit[row, 0] for limit in cut))
        tokens[row, step] = _pick_from(probabilities * kept, order, uniform[row, step])
    return tokens


def kept_tokens(ordered: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor) -> Tensor:
    """Which tokens the three limits leave, each applied to the whole distribution.

    top_p keeps the smallest set of most likely tokens with at least that mass (Holtzman et al.,
    2020), min_p those at least min_p times as likely as the likeliest. That one always stays.

    Args:
        ordered: probabilities [..., C], falling; the C most likely of a distribution.
        top_p, top_k, min_p: [..., 1].

    Returns:
        bool [..., C], True first.
    """
    before = ordered.cumsum(dim=-1) - ordered
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    kept = (before < top_p) & (rank < top_k) & (ordered >= min_p * ordered[..., :1])
    kept[..., 0] = True
    return kept


def _pick_from(weights: Tensor, order: Tensor, uniform: Tensor) -> Tensor:
    return order.gather(-1, pick(weights, uniform)[..., None])[..., 0]


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw: the first index whose cumulative weight exceeds uniform * total.

    That index always has a positive weight. The weights need not sum to 1. Of many weights, first a
    block is drawn by its sum and then a place in it, which spares most of a long cumulative sum.

    Args:
        weights: non-negative float [..., V], a positive sum in each row.
        uniform: float64 [...], in [0, 1).

    Returns:
        int64 [...].
    """
    size = weights.shape[-1]
    if size <= BLOCK:
        return _search(weights.cumsum(dim=-1, dtype=torch.float64), uniform)
    width = int(size**0.5)
    blocks = torch.nn.functional.pad(weights, (0, -size % width)).unflatten(-1, (-1, width))
    cumulative = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    block = _search(cumulative, uniform)[..., None]
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, block)[..., 0]
    end = cumulative.gather(-1, block)[..., 0]
    inside = ((uniform * cumulative[..., -1] - before) / (end - before)).clamp(min=0)
    chosen = blocks.gather(-2, block[..., None].expand(*block.shape, width))[..., 0, :]
    return block[..., 0] * width + _search(chosen.cumsum(dim=-1, dtype=torch.float64), inside)


def _search(cumulative: Tensor, uniform: Tensor) -> Tensor:
    # Below the total even after rounding: a threshold that reached it would fall on the last index,
    # whatever its weight.
    threshold = uniform.clamp(max=1 - 2.0**-52) * cumulative[..., -1]
    index = torch.searchsorted(cumulative, threshold[..., None], right=True)[..., 0]
    # Only a parallel (non-monotone) cumulative sum can push the threshold past the last entry.
    return index.clamp(max=cumulative.shape[-1] - 1)
