"""Mathematics verdicts on a Ray cluster: actors with a `MathVerifier` each, and one cache here."""

from concurrent.futures import Future
from functools import partial

from openmimo.cluster.pool import ActorPool
from openmimo.rewards.math import quick_verdict, too_long
from openmimo.rewards.math_verifier import MathVerifier
from openmimo.rewards.verdict import Verdict
from openmimo.rewards.verdict_cache import VerdictCache, done, verdict_of

_START_SECONDS = 300.0  # a verifier's process imports SymPy, perhaps several times over
_WALL_FACTOR = 60  # a verifier waits ten times as long as its clock of CPU time, up to three times


class RayMathVerifier:
    """`MathVerifier` on a cluster: the same verdicts. What needs no algebra is decided here.

    Args:
        workers: how many actors with one verifier each, spread over the nodes. None: one actor on
            each node, with a verifier for each of its CPUs.
        seconds, cache_size: as of `MathVerifier`.
        address: of the cluster (`cluster.session.join`).

    An answer whose worker, actor or node is lost is judged on another one. Raises UserError where
    there is no Ray, no cluster or no free CPU.
    """

    def __init__(
        self,
        workers: int | None = None,
        seconds: float = 3.0,
        cache_size: int = 20_000,
        address: str = "",
    ) -> None:
        self._longest = _START_SECONDS + _WALL_FACTOR * seconds
        self._cache = VerdictCache(cache_size)
        make = partial(MathVerifier, seconds=seconds, cache_size=0)
        self._pool = ActorPool(make, workers, address)

    @property
    def scored(self) -> int:
        """How many answers were worked out."""
        return self._cache.scored

    @property
    def cached(self) -> int:
        """How many answers had a verdict already."""
        return self._cache.cached

    def submit(self, answer: str, gold: str) -> Future[Verdict]:
        """Judge an answer: see `MathVerifier.submit`. The future always gives a verdict."""
        if too_long(gold, answer):  # and never a key of the cache
            return self._judge(answer, gold)
        return self._cache.once((gold, answer), lambda: self._judge(answer, gold))

    def close(self) -> None:
        """Stop at once: what is waiting gives `judge_error`."""
        self._pool.close()

    def __enter__(self) -> "RayMathVerifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, answer: str, gold: str) -> Future[Verdict]:
        quick = quick_verdict(gold, answer)
        if quick is not None:
            return done(quick)
        verdict: Future[Verdict] = Future()
        answered = self._pool.submit(answer, gold, seconds=self._longest)
        answered.add_done_callback(lambda future: verdict.set_result(verdict_of(future)))
        return verdict
