"""Sampling as a pure function of logits, settings, seed and position.

The randomness is counter-based: the uniform number a row uses at a position is a hash of
(seed, position, stream). So a request's sample does not depend on the requests that share its
batch, on the number of slots, or on the order of arrival.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# Independent streams of uniforms at one position.
SAMPLE, DRAFT, ACCEPT = range(3)


def signed64(value: int) -> int:
    """The int64 with the same low 64 bits: torch takes no larger integer."""
    return (value + 2**63) % 2**64 - 2**63


def sample_seed(*parts: object) -> int:
    """A 62-bit request seed that is a pure function of its parts (run seed, prompt, sample...)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


# Increment and multipliers of splitmix64 (Steele, Lea and Flood, 2014).
_GAMMA = signed64(0x9E3779B97F4A7C15)
_MIX_1 = signed64(0xBF58476D1CE4E5B9)
_MIX_2 = signed64(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's int64 shift would copy the sign bit in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of int64 that flips half the bits; products wrap."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seeds: Tensor, positions: Tensor, stream: int) -> Tensor:
    """Uniform numbers that depend on nothing but the arguments.

    Args:
        seeds: int64, broadcastable with `positions`.
        positions: int64, position of the token that is drawn.
        stream: which of the independent numbers of that position.

    Returns:
        float64 in [0, 1), multiples of 2**-53, of the broadcast shape.
    """
    bits = _mix(_mix(seeds + _GAMMA) + positions * _GAMMA)
    bits = _mix(bits + signed64((stream + 1) * _GAMMA))
    return _shift_right(bits, 11).double() * 2.0**-53


@dataclass(frozen=True)
class Settings:
    """Sampling settings of R rows.

    temperature: float32 [R]; 0 means greedy.
    top_p: float32 [R], in (0, 1].
    seeds: int64 [R].
    plain: known to be temperature 1 and top-p 1 everywhere; saves work, changes nothing.
    """

    temperature: Tensor
    top_p: Tensor
    seeds: Tensor
    plain: bool = False


def tempered(logits: Tensor, settings: Settings) -> Tensor:
    """softmax(logits / temperature), the distribution that reported log-probabilities refer to.

    A greedy row is reported at temperature 1: at temperature 0 every log-probability is 0.

    Args:
        logits: float [R, ..., V].

    Returns:
        float32 [R, ..., V].
    """
    logits = logits.float()
    if not settings.plain:
        divisor = torch.where(settings.temperature > 0, settings.temperature, 1.0)
        logits = logits / _per_row(divisor, logits)
    return torch.softmax(logits, dim=-1)


def sampled_from(probabilities: Tensor, settings: Settings) -> Tensor:
    """The distribution a token is drawn from: the nucleus of `tempered`, or one-hot if greedy.

    Args:
        probabilities: output of `tempered`, [R, ..., V].

    Returns:
        The same shape; rows sum to 1.
    """
    if settings.plain:
        return probabilities
    truncated = settings.top_p < 1
    if truncated.any():
        kept = nucleus(probabilities, _per_row(settings.top_p, probabilities))
        probabilities = torch.where(_per_row(truncated, kept), kept, probabilities)
    greedy = settings.temperature == 0
    if greedy.any():
        best = torch.zeros_like(probabilities)
        best.scatter_(-1, probabilities.argmax(dim=-1, keepdim=True), 1.0)
        probabilities = torch.where(_per_row(greedy, best), best, probabilities)
    return probabilities


def nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens with at least `top_p` mass; renormalise.

    Holtzman et al., 2020. The most likely token always stays; ties go to the lower index.

    Args:
        probabilities: [..., V].
        top_p: broadcastable to [..., 1].
    """
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p, ordered, 0.0)
    kept[..., 0] = ordered[..., 0]
    kept = kept / kept.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(-1, order, kept)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw: the first index whose cumulative weight exceeds uniform * total.

    That index always has a positive weight. The weights need not sum to 1.

    Args:
        weights: non-negative float [..., V], a positive sum in each row.
        uniform: float64 [...], in [0, 1).

    Returns:
        int64 [...].
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    threshold = uniform * cumulative[..., -1]
    index = torch.searchsorted(cumulative, threshold[..., None], right=True)[..., 0]
    # Only a parallel (non-monotone) cumulative sum can push the threshold past the last entry.
    return index.clamp(max=weights.shape[-1] - 1)


def sample(logits: Tensor, settings: Settings, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: float [R, V] over the tokenizer's used ids only, so that an unused row of the
            head is never drawn.
        settings: of the R rows.
        positions: int64 [R], position that the drawn token will have.

    Returns:
        tokens int64 [R] and log-probabilities float32 [R]: of the tempered distribution before
        top-p. At temperature 1 and top-p 1 this is exactly the distribution drawn from.
    """
    probabilities = tempered(logits, settings)
    uniform = uniforms(settings.seeds, positions, SAMPLE)
    tokens = pick(sampled_from(probabilities, settings), uniform)
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """[R] -> [R, 1, ..., 1] with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
