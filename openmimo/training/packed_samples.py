"""Rows of whole samples, for tuning on prompts and responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openmimo.config.schema import TuneConfig
from openmimo.data.shards import epoch_order
from openmimo.errors import UserError
from openmimo.training.batch import WHOLE, Segment, Share, batch_rows, pack
from openmimo.training.loop import constant_with_warmup
from openmimo.training.source import Step


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

    @property
    def padding(self) -> float:
        """Share of the rows' tokens that is padding: work for nothing."""
        return 1 - self.fill

    def row(self, number: int) -> list[Segment]:
        """Row `number`, counted on over epochs."""
        return [self._samples[index] for index in self._rows[self.place(number)]]

    def place(self, number: int) -> int:
        """Which of the packed rows row `number` is; the same one comes once an epoch."""
        epoch, place = divmod(number, len(self._rows))
        return int(epoch_order(len(self._rows), self._seed, self._name, epoch)[place])


class SampleSource:
    """Constant settings over packed samples.

    Args:
        name: of the stage, for its metrics.
        mtp_weight: weight of the MTP loss.
        share: whose rows are read.
    """

    def __init__(
        self,
        name: str,
        config: TuneConfig,
        samples: PackedSamples,
        mtp_weight: float,
        rope_base: float,
        pad_id: int,
        share: Share = WHOLE,
    ) -> None:
        self._name, self._config, self.samples = name, config, samples
        self._share = share
        self._mtp_weight, self._rope_base, self._pad_id = mtp_weight, rope_base, pad_id
        self.total_steps = config.steps

    def numbers(self, index: int) -> range:
        """Which rows of step `index` are read here."""
        mine = self._share.of(self._config.batch)
        first = index * self._config.batch
        return range(first + mine.start, first + mine.stop)

    def step(self, index: int) -> Step:
        config = self._config
        rows = [self.samples.row(number) for number in self.numbers(index)]
        return Step(
            stage=self._name,
            batch=batch_rows(rows, config.length, self._pad_id),
            rows=config.batch,
            learning_rate=constant_with_warmup(index, config.learning_rate, config.warmup_steps),
            mtp_weight=self._mtp_weight,
            rope_base=self._rope_base,
        )

    def state(self) -> dict[str, Any]:
        return {}  # the step's index says it all

    def restore(self, state: dict[str, Any]) -> None:
        return
