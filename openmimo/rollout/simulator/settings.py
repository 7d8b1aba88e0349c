"""Clusters and kinds of work that are simulated, each a `Setting`."""

from dataclasses import dataclass, replace

from openmimo.rollout.simulator.engine import EngineSpeed
from openmimo.rollout.simulator.simulate import Cluster
from openmimo.rollout.simulator.worlds import World

H200 = EngineSpeed(base=7.04e-3, per_row=0.0643e-3, slots=128, prefill=0.015)
"""MiMo-7B's shape on one H200: least squares of the four rates of docs/inference.md (batch 1, 8, 32
and 128), each within 3 %. The time to read a prompt is assumed."""

ACCEPTANCE = 0.586
"""Of one draft by MiMo-7B-RL's MTP layer, as the engine of slime and vime measured it. The report
says about 0.9; the lower one is taken."""

DRAFT_COST = 0.11
"""Of a plain step's base. A draft reads the weights of one layer of 36 and of the output matrix,
which are 0.8 of 7.6 billion."""


@dataclass(frozen=True)
class Setting:
    """What is simulated: `world` makes the traces, `cluster` runs them; `imagined`: of the report's
    policies (`policies.Continuous`)."""

    about: str
    world: World
    cluster: Cluster
    imagined: int

    @property
    def drafting(self) -> Cluster:
        """The cluster with exact MTP speculation."""
        speed = replace(self.cluster.speed, acceptance=ACCEPTANCE, draft_cost=DRAFT_COST)
        return replace(self.cluster, speed=speed)

    def scaled(self, by: int) -> "Setting":
        """The same with batch and cluster so many times smaller."""
        world = replace(self.world, prompts_per_step=self.world.prompts_per_step // by)
        cluster = replace(
            self.cluster,
            engines=max(1, self.cluster.engines // by),
            reward_workers=max(1, self.cluster.reward_workers // by),
            serial_rewards=max(1, round(self.cluster.serial_rewards / by)),
        )
        return replace(self, world=world, cluster=cluster, imagined=max(1, self.imagined // by))


REPORT = Setting(
    "the report's Table 2: 512 prompts of 16 samples on 256 engines",
    World(median_tokens=2500, between=0.65, within=0.55, difficulty=0.0, reward_seconds=0.1),
    Cluster(256, H200, reward_workers=1024, serial_rewards=64),
    imagined=64,
)
