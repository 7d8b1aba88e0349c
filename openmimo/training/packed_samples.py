"""Rows of whole samples, for tuning on prompts and responses."""

from __future__ import annotations

from collections.abc import Sequence

from openmimo.data.shards import epoch_order
from openmimo.errors import UserError
from openmimo.training.batch import Segment, pack


class PackedSamples:
    """Endless rows of whole samples, a pure function of (seed, row number).

    The samples are packed once into rows of `length` tokens; every epoch reads the rows in an order
    of its own. Samples that are longer than a row are left out and counted in `too_long`.

    Args:
        name: of the settings' section; orders differ with it.
    """

    def __init__(self, samples: Sequence[Segment], length: int, seed: int, name: str) -> None:
        self._samples = [sample for sample in samples if len(sample.ids) <= length]
        self.too_long = len(samples) - len(self._samples)
        if not self._samples:
            raise UserError(f"no sample fits {name}.length = {length} tokens")
        self._length, self._seed, self._name = length, seed, name
        self._rows = pack([len(sample.ids) for sample in self._samples], length)

    def __len__(self) -> int:
        """Packed rows: those of one epoch."""
        return len(self._rows)

    @property
    def fill(self) -> float:
        """Share of the rows' tokens that is not padding."""
        used = sum(len(sample.ids) for sample in self._samples)
        return used / (len(self._rows) * self._length)

    def row(self, number: int) -> list[Segment]:
        """Row `number`, counted on over epochs."""
        return [self._samples[index] for index in self._rows[self.place(number)]]

    def place(self, number: int) -> int:
        """Which of the packed rows row `number` is; the same one comes once an epoch."""
        epoch, place = divmod(number, len(self._rows))
        return int(epoch_order(len(self._rows), self._seed, self._name, epoch)[place])
