"""Clusters and kinds of work that are simulated, each a `Setting`."""

from dataclasses import dataclass, replace

from openmimo.rollout.simulator.engine import EngineSpeed
from openmimo.rollout.simulator.simulate import Cluster
from openmimo.rollout.simulator.worlds import World

H200 = EngineSpeed(base=7.04e-3, per_row=0.0643e-3, slots=128, prefill=0.015)
"""MiMo-7B's shape on one H200: least squares of the four rates of docs/inference.md (batch 1, 8, 32
and 128), each within 3 %. The time to read a prompt is assumed."""

NANO = EngineSpeed(base=0.86e-3, per_row=0.0953e-3, slots=256, prefill=0.001)
"""The nano model on one CPU core, through the rates of docs/inference.md at batch 1 and 128; 10 %
too fast at 32. The time to read a prompt is assumed."""

ACCEPTANCE = 0.586
"""Of one draft by MiMo-7B-RL's MTP layer, as measured in an issue of vime. The report says about
0.9; the lower one is taken."""

DRAFT_COST = 0.11
"""Of a plain step's base. A draft reads the weights of one layer of 36 and of the output matrix,
which are 0.8 of 7.6 billion."""

VALIDATION_LENGTH, VALIDATION_PROCESSES = 1.5, 0.2
"""Answers and processes for serial rewards in validation, beside those of a training step: other
prompts, another run. Fitted to Table 3."""


@dataclass(frozen=True)
class Setting:
    """What is simulated: `world` makes the traces, `cluster` runs them."""

    about: str
    world: World
    cluster: Cluster

    @property
    def drafting(self) -> Cluster:
        """The cluster with exact MTP speculation."""
        speed = replace(self.cluster.speed, acceptance=ACCEPTANCE, draft_cost=DRAFT_COST)
        return replace(self.cluster, speed=speed)

    @property
    def validating(self) -> "Setting":
        """The same with the answers and rewards of validation."""
        world = replace(self.world, median_tokens=VALIDATION_LENGTH * self.world.median_tokens)
        serial = max(1, round(VALIDATION_PROCESSES * self.cluster.serial_rewards))
        return replace(self, world=world, cluster=replace(self.cluster, serial_rewards=serial))

    def scaled(self, by: int) -> "Setting":
        """The same with batch and cluster so many times smaller."""
        world = replace(self.world, prompts_per_step=self.world.prompts_per_step // by)
        cluster = replace(
            self.cluster,
            engines=max(1, self.cluster.engines // by),
            reward_workers=max(1, self.cluster.reward_workers // by),
            serial_rewards=max(1, round(self.cluster.serial_rewards / by)),
        )
        return replace(self, world=world, cluster=cluster)

    def on(self, engines: int) -> "Setting":
        """The same batch on a cluster of so many engines, all else in proportion."""
        share = engines / self.cluster.engines
        cluster = Cluster(
            engines,
            self.cluster.speed,
            max(1, round(share * self.cluster.reward_workers)),
            max(1, round(share * self.cluster.serial_rewards)),
        )
        return replace(self, cluster=cluster)

    def of(self, about: str, **changes: float) -> "Setting":
        """The same with another kind of work; `changes`: of `World`."""
        return replace(self, about=about, world=replace(self.world, **changes))  # type: ignore[arg-type]


REPORT = Setting(
    "512 prompts of 16 samples, as in the report's Table 2",
    World(
        median_tokens=2500, between=0.4, within=0.8, difficulty=0.0, pass_rate=0.5,
        reward_seconds=0.1, code_seconds=1.0,
    ),
    Cluster(256, H200, reward_workers=1024, serial_rewards=108),
)  # fmt: skip
"""Fitted to Table 2 by benchmarks/rollout_fit.py; docs/rollout.md says how well it does."""

SETTINGS = {
    "report": REPORT,
    "nano": Setting(
        "the nano recipe on one CPU core: for traces of its runs",
        World(
            prompts_per_step=32,
            group_size=8,
            median_tokens=35,
            between=0.4,
            within=0.3,
            max_tokens=128,
            reward_seconds=0.01,
            code_seconds=0.2,
        ),
        Cluster(1, NANO, reward_workers=2, serial_rewards=1),
    ),
    "small": replace(REPORT.scaled(16), about="the report's, 16 times smaller: for a quick look"),
    "engines-8": REPORT.on(8),
    "engines-64": REPORT.on(64),
    "valid-20": REPORT.of("a fifth of the groups valid", valid_rate=0.2, stream=16),
    "valid-60": REPORT.of("three fifths of the groups valid", valid_rate=0.6),
    "valid-80": REPORT.of("four fifths of the groups valid", valid_rate=0.8),
    "code": REPORT.of("nine of ten prompts are code", code_share=0.9),
    "early": REPORT.of("short answers, as early in training", median_tokens=700),
    "late": REPORT.of("long answers, as late in training", median_tokens=6000),
    "first-epoch": REPORT.of("no prompt was ever sampled before", visited=0.0),
}
"""Those of `mimo rollout-bench --setting`."""
