"""What a recipe takes on a given cluster: operations, memory, time and cost by stage.

A stage's time is its operations over what all GPUs do at the given utilisation (MFU), times what
uneven shares cost: a step lasts as long as its rank with the most sequences.

No torch here: `mimo plan` must answer at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from openmimo.config.schema import Recipe
from openmimo.training.flops import Flops, mean_context, training_flops
from openmimo.training.memory import Memory, Workload, longest_length, training_memory
from openmimo.training.schedule import Schedule

STAGES = ("pretrain", "mtp_heads", "sft")
"""Those that can be planned: how long RL takes is decided by how long its answers are."""


@dataclass(frozen=True)
class Cluster:
    """The hardware.

    Attributes:
        gpu: what it is called.
        ranks: processes, each with a GPU of its own.
        memory: bytes of a GPU.
        peak: operations a second of a GPU, in the recipe's dtype.
        mfu: share of the peak that the model's own operations reach.
        price: of a GPU for an hour; None where nobody asks for the cost.
    """

    gpu: str
    ranks: int
    memory: float
    peak: float
    mfu: float
    price: float | None = None

    @property
    def cpu(self) -> bool:
        return self.gpu == "cpu"


@dataclass(frozen=True)
class Part:
    """Consecutive steps of one length: those of a row of the schedule, or a whole stage.

    Attributes:
        row: index in the schedule; None for a stage without one.
        batch: sequences of the largest step.
        grows: whether other steps have other batches.
        length: tokens of a sequence.
        tokens_per_microbatch: as the settings say; at least one row is computed at a time.
        flops: operations for one token.
        seconds: with what uneven shares cost.
        idle: share of the ranks' time that they wait for the rank with the most sequences.
    """

    row: int | None
    steps: int
    tokens: int
    batch: int
    grows: bool
    length: int
    tokens_per_microbatch: int
    flops: Flops
    seconds: float
    idle: float

    def workload(self, ranks: int, mtp_layers: int, trunk: bool) -> Workload:
        """What a rank computes at a time in the largest step."""
        mine = -(-self.batch // ranks)
        rows = min(mine, max(1, self.tokens_per_microbatch // self.length))
        return Workload(rows * self.length, self.length, mtp_layers, trunk, -(-mine // rows))


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        mtp_layers: MTP layers that are trained.
        trunk: whether the rest of the model is trained too.
        workload: of the part that needs most memory; None for a stage without steps.
        memory: of one rank in that part, by what takes it.
        longest: tokens of the longest row that a GPU trains when it computes one at a time.
        cost: in the price's currency.
    """

    name: str
    mtp_layers: int
    trunk: bool
    parts: tuple[Part, ...]
    workload: Workload | None
    memory: Memory
    longest: int
    tokens: int
    steps: int
    flops: float
    seconds: float
    idle: float
    gpu_hours: float
    cost: float | None


def plan_stage(recipe: Recipe, name: str, cluster: Cluster, document: float | None) -> StagePlan:
    """One of STAGES on a cluster; `document` is the mean length of documents, None: the row's."""
    mtp_layers, trunk = trained_layers(recipe, name)
    parts = tuple(_parts(recipe, name, cluster, document))
    config = recipe.model.model_copy(update={"num_nextn_predict_layers": layers_held(recipe, name)})
    needs = [
        (training_memory(config, recipe.compute, work, cluster.ranks, cluster.cpu), work)
        for work in {part.workload(cluster.ranks, mtp_layers, trunk) for part in parts}
    ]
    memory, workload = max(
        needs, key=lambda need: (need[0].total, need[1].length), default=(Memory({}), None)
    )
    longest = 0
    if workload is not None:
        longest = longest_length(
            config, recipe.compute, workload, cluster.ranks, cluster.memory, cluster.cpu
        )
    seconds = sum(part.seconds for part in parts)
    hours = seconds * cluster.ranks / 3600
    return StagePlan(
        name=name,
        mtp_layers=mtp_layers,
        trunk=trunk,
        parts=parts,
        workload=workload,
        memory=memory,
        longest=longest,
        tokens=sum(part.tokens for part in parts),
        steps=sum(part.steps for part in parts),
        flops=sum(part.tokens * part.flops.total for part in parts),
        seconds=seconds,
        idle=sum(part.idle * part.seconds for part in parts) / (seconds or 1),
        gpu_hours=hours,
        cost=None if cluster.price is None else hours * cluster.price,
    )


def trained_layers(recipe: Recipe, name: str) -> tuple[int, bool]:
    """How many MTP layers a stage trains, and whether it trains the trunk."""
    if name == "mtp_heads":
        frozen = 0 if recipe.mtp_heads.tune_first else 1
        return recipe.mtp_heads.layers - frozen, False
    return layers_held(recipe, name), True


def layers_held(recipe: Recipe, name: str) -> int:
    """MTP layers of the model in a stage."""
    return recipe.model.num_nextn_predict_layers if name == "pretrain" else recipe.mtp_heads.layers


def fits(recipe: Recipe, stages: Sequence[str], cluster: Cluster) -> bool:
    """Whether every stage finds room on each rank."""
    plans = (plan_stage(recipe, name, cluster, None) for name in stages)
    return all(plan.memory.total <= cluster.memory for plan in plans)


def fewest_ranks(recipe: Recipe, stages: Sequence[str], cluster: Cluster) -> int | None:
    """The smallest power of two of ranks on which all stages fit; None up to 4,096."""
    powers = (2**n for n in range(13))
    return next((n for n in powers if fits(recipe, stages, replace(cluster, ranks=n))), None)


def _parts(recipe: Recipe, name: str, cluster: Cluster, document: float | None) -> Iterator[Part]:
    """Those that have steps."""
    mtp_layers, trunk = trained_layers(recipe, name)

    def part(row: int | None, length: int, microbatch: int, steps: list[tuple[int, int]]) -> Part:
        """`steps`: number of steps and sequences in each."""
        context = mean_context(length, document)
        flops = training_flops(recipe.model, context, mtp_layers, trunk=trunk)
        sequences = sum(count * batch for count, batch in steps)
        waited = sum(count * -(-batch // cluster.ranks) * cluster.ranks for count, batch in steps)
        speed = cluster.ranks * cluster.peak * cluster.mfu
        return Part(
            row=row,
            steps=sum(count for count, _ in steps),
            tokens=sequences * length,
            batch=max(batch for _, batch in steps),
            grows=len({batch for _, batch in steps}) > 1,
            length=length,
            tokens_per_microbatch=microbatch,
            flops=flops,
            seconds=waited * length * flops.total / speed,
            idle=1 - sequences / waited,
        )

    if name == "pretrain":
        by_row: dict[int, list[tuple[int, int]]] = {}
        for span in Schedule(recipe.pretrain.schedule).spans():
            by_row.setdefault(span.row, []).append((span.steps, span.batch))
        for row, steps in by_row.items():
            length = recipe.pretrain.schedule[row].length
            yield part(row, length, recipe.pretrain.tokens_per_microbatch, steps)
    else:
        tune = recipe.mtp_heads if name == "mtp_heads" else recipe.sft
        yield part(None, tune.length, tune.tokens_per_microbatch, [(tune.steps, tune.batch)])
