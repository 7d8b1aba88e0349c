"""Who is read next, into which row, and what can be taken from caches instead of being computed.

The rows of the caches are, in this order: active ones, the cohort that is being read, free ones.
A free row keeps what its last request left, so the next turn of a conversation is read only from
where it differs. In the same way the samples of one prompt share its reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from openmimo.inference.prefill import Reader, Reading
from openmimo.inference.protocol import RequestId
from openmimo.inference.rows import QueuedRequest, Rows

SHORTEST_SHARED = 16
"""Fewest common tokens worth a copy, unless they are the whole prompt."""

Copies = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Source rows, target rows, and how many entries of each stay valid."""


class Cohort(Reading):
    """Requests that are read together and become active together.

    Args:
        sources: of each reader, the row that its first `filled` entries come from.
        followers: requests with the same prompt as a reader, by its place: copied at the end.
    """

    def __init__(
        self,
        rows: Rows,
        readers: Sequence[Reader],
        sources: Sequence[int],
        followers: Sequence[tuple[QueuedRequest, int]],
    ) -> None:
        super().__init__(rows, readers, rows.count)
        self._sources = list(sources)
        self._followers = [(q, self.readers[place]) for q, place in followers]
        self._live = [r.queued for r in self.readers] + [q for q, _ in self._followers]
        for reader in self.readers:
            reader.queued.cached = reader.filled
        for q, _ in self._followers:
            q.cached = len(q.prompt) - 1
        self.shared_tokens = sum(q.cached for q in self._live)

    @property
    def live(self) -> int:
        """Requests that have not been dropped."""
        return len(self._live)

    def copies(self) -> Copies:
        """The copies to make before reading."""
        targets = np.arange(self.first, self.first + len(self.readers))
        return np.array(self._sources), targets, np.array([r.filled for r in self.readers])

    def drop(self, gone: Collection[RequestId]) -> list[RequestId]:
        """Forget requests; their rows are read on, as others may need them. Returns their ids."""
        dropped = [q.request.id for q in self._live if q.request.id in gone]
        self._live = [q for q in self._live if q.request.id not in gone]
        return dropped

    def restart(self) -> None:
        """Read from the beginning: the weights have changed."""
        for reader in self.readers:
            reader.filled = reader.queued.cached = 0
            reader.queued.prompt_scores.clear()

    def join(self) -> Copies:
        """Make the requests active; returns the copies that put each into its row."""
        row_of = {id(reader): self.first + n for n, reader in enumerate(self.readers)}
        source = {id(r.queued): row_of[id(r)] for r in self.readers}
        source |= {id(q): row_of[id(r)] for q, r in self._followers}
        rows, first = self._rows, self._rows.count
        for row, queued in enumerate(self._live, first):
            rows.place(row, queued)
        rows.start(self._live)
        return (
            np.array([source[id(q)] for q in self._live], np.int64),
            np.arange(first, first + len(self._live)),
            np.array([len(q.prompt) - 1 for q in self._live], np.int64),
        )

    def move_to(self, first: int) -> Copies:
        """Begin at an earlier row; the last readers fill the gap."""
        count = len(self.readers)
        moved = min(self.first - first, count)
        sources = np.arange(self.first + count - moved, self.first + count)
        targets = np.arange(first, first + moved)
        self._rows.move(sources.tolist(), targets.tolist())
        last = self.readers[count - moved :]
        self.readers = last + self.readers[: count - moved]
        self.first = first
        return sources, targets, np.array([r.filled for r in last], np.int64)


class Waiting:
    """The queue, and what the caches of free rows still hold.

    Args:
        rows: of all requests.
        slots: how many rows there are.
        budget: most tokens of a cohort, padding included; a longer prompt is read alone.
    """

    def __init__(self, rows: Rows, slots: int, budget: int) -> None:
        self._rows, self._budget = rows, budget
        self._queue: deque[QueuedRequest] = deque()
        # Valid cache entries of a free row; their tokens are still in `rows`.
        self._left = np.zeros(slots, np.int64)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, queued: Iterable[QueuedRequest]) -> None:
        """Append to the queue."""
        self._queue += queued

    def drop(self, gone: Collection[RequestId]) -> list[RequestId]:
        """Take requests out of the queue; returns their ids."""
        dropped = [q.request.id for q in self._queue if q.request.id in gone]
        if dropped:
            self._queue = deque(q for q in self._queue if q.request.id not in gone)
        return dropped

    def forget_finished(self) -> None:
        """The weights have changed: free rows hold nothing of use."""
        self._left[:] = 0

    def next_cohort(self) -> Cohort | None:
        """The first requests of the queue that fit the free rows and the budget."""
        free = len(self._left) - self._rows.count
        if not free or not self._queue:
            return None
        readers: list[Reader] = []
        sources: list[int] = []
        followers: list[tuple[QueuedRequest, int]] = []
        place_of: dict[bytes, int] = {}
        longest = 0
        while self._queue and len(readers) + len(followers) < free:
            q = self._queue[0]
            if q.key in place_of and not q.request.score_prompt:
                followers.append((q, place_of[q.key]))
            else:
                source, shared = self._longest_prefix(q)
                longest = max(longest, len(q.prompt) - 1 - shared)
                if readers and (len(readers) + 1) * longest > self._budget:
                    break
                place_of.setdefault(q.key, len(readers))
                readers.append(Reader(q, shared, len(q.prompt) - 1))
                sources.append(source)
            self._queue.popleft()
        first = self._rows.count
        for row, reader in enumerate(readers, first):
            self._rows.place(row, reader.queued)
        self._left[first : first + len(readers)] = 0
        return Cohort(self._rows, readers, sources, followers)

    def _longest_prefix(self, queued: QueuedRequest) -> tuple[int, int]:
        """The row that begins with most of the prompt's tokens but the last, and how many."""
        wanted = queued.prompt[:-1]
        if not len(wanted) or queued.request.score_prompt:
            return 0, 0
        count, tokens = self._rows.count, self._rows.tokens
        valid = self._left.copy()
        valid[:count] = self._rows.known[:count] - 1
        near = np.flatnonzero((valid > 0) & (tokens[: len(valid), 0] == wanted[0]))
        if not len(near):
            return 0, 0
        other = tokens[near, : len(wanted)] != wanted
        same = np.where(other.any(axis=1), other.argmax(axis=1), len(wanted))
        shared = np.minimum(same, valid[near])
        best = int(shared.argmax())
        if shared[best] < min(SHORTEST_SHARED, len(wanted)):
            return 0, 0
        return int(near[best]), int(shared[best])

    def close_holes(self, finished: Sequence[int], cohort: Cohort | None) -> Copies:
        """Take finished rows out; rows move up so that active ones and cohort stay contiguous."""
        rows, before = self._rows, self._rows.count
        sources, targets = rows.remove(finished)
        filled = rows.known[targets] - 1
        # Finished, or moved from here: what these rows hold stays usable until it is overwritten.
        self._left[rows.count : before] = rows.known[rows.count : before] - 1
        copies = np.array(sources, np.int64), np.array(targets, np.int64), filled
        if not cohort:
            return copies
        moved = cohort.move_to(rows.count)
        self._left[rows.count : rows.count + len(cohort.readers)] = 0
        return (
            np.concatenate([copies[0], moved[0]]),
            np.concatenate([copies[1], moved[1]]),
            np.concatenate([copies[2], moved[2]]),
        )
