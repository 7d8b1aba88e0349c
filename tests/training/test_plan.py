"""The arithmetic of `mimo plan`, and the checks that come before a launch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.training.batch import Share
from openmimo.training.flops import training_flops
from openmimo.training.memory import Workload
from openmimo.training.plan import STAGES, Cluster, StagePlan, fewest_ranks, fits, plan_stage
from openmimo.training.plan_checks import SourceUse, judge, source_uses
from openmimo.training.schedule import Schedule

H100 = Cluster("H100", 1, 80e9, 989.4e12, 0.4, price=2.0)


@pytest.fixture(scope="module")
def nano() -> Recipe:
    return load_config(Recipe, "nano")


@pytest.fixture(scope="module")
def mimo() -> Recipe:
    return load_config(Recipe, "mimo-7b")


def planned(recipe: Recipe, cluster: Cluster, *stages: str) -> list[StagePlan]:
    return [plan_stage(recipe, name, cluster, None) for name in stages or STAGES]


def faults_and_notes(
    recipe: Recipe, cluster: Cluster, *stages: str, stored: dict[str, int] | None = None
) -> tuple[list[str], list[str]]:
    plans = planned(recipe, cluster, *stages)
    return judge(recipe, cluster, plans, source_uses(recipe, plans, stored))


def changed(recipe: Recipe, *overrides: str) -> Recipe:
    return load_config(Recipe, recipe.name, list(overrides))


def test_a_stage_s_tokens_steps_and_operations_are_those_of_its_steps(nano: Recipe) -> None:
    steps = Schedule(nano.pretrain.schedule).steps()
    [plan] = planned(nano, H100, "pretrain")
    assert plan.steps == len(steps)
    assert plan.tokens == sum(point.batch * point.length for _, point in steps)
    by_hand = sum(
        point.batch * point.length
        * training_flops(nano.model, (point.length + 1) / 2, mtp_layers=1).total
        for _, point in steps
    )  # fmt: skip
    assert plan.flops == pytest.approx(by_hand)
    assert plan.seconds == pytest.approx(by_hand / (989.4e12 * 0.4))
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 2.0)


@given(ranks=st.integers(1, 12))
def test_a_step_lasts_as_long_as_its_busiest_rank(ranks: int) -> None:
    nano = load_config(Recipe, "nano")
    [alone], [shared] = (
        planned(nano, replace(H100, ranks=count), "pretrain") for count in (1, ranks)
    )
    busiest = sum(
        max(len(Share(rank, ranks).of(point.batch)) for rank in range(ranks)) * point.length
        * training_flops(nano.model, (point.length + 1) / 2, mtp_layers=1).total
        for _, point in Schedule(nano.pretrain.schedule).steps()
    )  # fmt: skip
    assert shared.seconds == pytest.approx(busiest / (989.4e12 * 0.4))
    # What is not waited for is the work, and that is the same on any number of ranks.
    assert shared.gpu_hours * (1 - shared.idle) == pytest.approx(alone.gpu_hours)


def test_stages_that_freeze_the_trunk_and_stages_without_steps(mimo: Recipe) -> None:
    pretrain, heads, sft = planned(mimo, replace(H100, ranks=128))
    assert (pretrain.mtp_layers, heads.mtp_layers, sft.mtp_layers) == (1, 2, 3)
    assert (pretrain.trunk, heads.trunk, sft.trunk) == (True, False, True)
    assert heads.memory.parts["AdamW's moments"] < sft.memory.parts["AdamW's moments"] / 10
    smol = load_config(Recipe, "smol")  # hands its model on
    [nothing] = planned(smol, H100, "pretrain")
    assert (nothing.steps, nothing.flops, nothing.seconds, nothing.workload) == (0, 0, 0, None)


@pytest.mark.parametrize(
    ("ranks", "tokens", "micro_batches"),
    [(1, 65_536, 64), (50, 65_536, 2), (128, 32_768, 1), (500, 32_768, 1)],
)
def test_what_a_rank_computes_at_a_time(
    mimo: Recipe, ranks: int, tokens: int, micro_batches: int
) -> None:
    # 128 rows of 32,768 tokens over the ranks, at most two of them at a time.
    recipe = changed(mimo, "sft.tokens_per_microbatch=70000")
    [plan] = planned(recipe, replace(H100, ranks=ranks), "sft")
    assert plan.workload == Workload(tokens, 32_768, 3, True, micro_batches)


def test_longer_documents_cost_more_attention_alone(mimo: Recipe) -> None:
    short, whole = (plan_stage(mimo, "pretrain", H100, document) for document in (100.0, None))
    for part, other in zip(short.parts, whole.parts, strict=True):
        assert part.flops.attention < other.flops.attention / 50
        assert replace(part.flops, attention=0) == replace(other.flops, attention=0)


def test_the_longest_row_fits_and_the_next_one_does_not(mimo: Recipe) -> None:
    cluster = replace(H100, ranks=64)
    for plan in planned(mimo, cluster):
        section = plan.name
        at, beyond = (
            changed(
                mimo,
                f"{section}.tokens_per_microbatch=1",
                f"model.max_position_embeddings={length}",
                f"{section}.length={length}"
                if section != "pretrain"
                else f"pretrain.schedule.6.length={length}",
            )
            for length in (plan.longest, plan.longest + 256)
        )
        assert fits(at, [section], cluster)
        assert not fits(beyond, [section], cluster)


def test_the_fewest_ranks(mimo: Recipe) -> None:
    ranks = fewest_ranks(mimo, STAGES, H100)
    assert ranks
    assert fits(mimo, STAGES, replace(H100, ranks=ranks))
    assert not fits(mimo, STAGES, replace(H100, ranks=ranks // 2))
    assert fewest_ranks(mimo, STAGES, replace(H100, memory=1e9)) is None


def test_the_preset_would_run_on_128_gpus(mimo: Recipe) -> None:
    assert faults_and_notes(mimo, replace(H100, ranks=128)) == ([], [])


def test_what_does_not_fit_comes_with_what_would(mimo: Recipe) -> None:
    recipe = changed(mimo, "compute.activation_checkpointing=false")
    cluster = replace(H100, ranks=64)
    [fault], _ = faults_and_notes(recipe, cluster, "sft")
    assert fault.startswith("sft does not fit: a rank needs ")
    assert "compute.activation_checkpointing=true" in fault
    # More ranks do not help against activations, so none are offered.
    assert "GPUs" not in fault
    [fault], _ = faults_and_notes(mimo, H100, "sft")
    assert fault.endswith(f": {fewest_ranks(mimo, ['sft'], H100)} GPUs")


def test_each_remedy_works(mimo: Recipe) -> None:
    recipe = changed(
        mimo, "compute.activation_checkpointing=false", "sft.tokens_per_microbatch=131072"
    )
    cluster = replace(H100, ranks=64, memory=60e9)
    [fault], _ = faults_and_notes(recipe, cluster, "sft")
    offers = fault.partition("What would do: ")[2].split("; or ")
    assert offers
    for offer in offers:
        better = load_config(
            Recipe,
            "mimo-7b",
            [
                "compute.activation_checkpointing=false",
                "sft.tokens_per_microbatch=131072",
                *(word for word in offer.split() if "=" in word),
            ],
        )
        assert fits(better, ["sft"], cluster)


@pytest.mark.parametrize(
    ("ranks", "stage", "better"),
    [(256, "sft", "take 128"), (96, "sft", "take 64 or 128"), (256, "pretrain", "take 160 or 320")],
)
def test_batches_that_do_not_divide(mimo: Recipe, ranks: int, stage: str, better: str) -> None:
    faults, notes = faults_and_notes(mimo, replace(H100, ranks=ranks), stage)
    [sentence] = [each for each in faults + notes if "do not divide" in each]
    assert sentence.endswith(better)
    [plan] = planned(mimo, replace(H100, ranks=ranks), stage)
    # A little waiting is noted, much is a fault.
    assert (sentence in faults) == (plan.idle > 0.1)
    assert f"wait {plan.idle:.1%}" in sentence


def test_a_row_longer_than_a_micro_batch(mimo: Recipe) -> None:
    recipe = changed(mimo, "pretrain.tokens_per_microbatch=16384")
    [fault], _ = faults_and_notes(recipe, replace(H100, ranks=128), "pretrain")
    assert "pretrain.tokens_per_microbatch is 16,384, less than a sequence of 32,768" in fault


def test_a_row_of_the_schedule_that_is_never_used(nano: Recipe) -> None:
    recipe = changed(nano, "pretrain.schedule.1.until=60_001")
    _, notes = faults_and_notes(recipe, H100, "pretrain")
    assert any("pretrain.schedule.1 " in note for note in notes)


def test_sources_are_what_the_mixtures_ask_for(nano: Recipe) -> None:
    plans = planned(nano, H100)
    uses = source_uses(nano, plans, {"general": 1000, "math": 0})
    for plan in plans[:2]:
        asked = sum(use.wanted for use in uses if use.stage == plan.name)
        assert asked == pytest.approx(plan.tokens, abs=4)
    synthetic = next(use for use in uses if use.source == "synthetic")
    stage3 = sum(part.tokens for part in plans[0].parts[-2:])
    assert synthetic.wanted == pytest.approx(0.1 * stage3, abs=1)
    general, math = uses[:2]
    assert general.epochs == general.wanted / 1000
    assert (math.stored, math.epochs) == (0, None)
    assert {use.stage for use in uses} == {"pretrain", "mtp_heads"}  # SFT reads samples
    answers = changed(nano, "mtp_heads.generations=10")
    assert not source_uses(answers, planned(answers, H100, "mtp_heads"), None)


@pytest.mark.parametrize(
    ("source", "times", "where"),
    [("math", 3, "nowhere"), ("math", 6, "notes"), ("math", 60, "faults"),
     ("synthetic", 60, "notes")],
)  # fmt: skip
def test_text_that_is_read_many_times(nano: Recipe, source: str, times: int, where: str) -> None:
    uses: Sequence[Any] = [SourceUse("pretrain", source, times * 1000, 1000)]
    faults, notes = judge(nano, H100, [], uses)
    found = {"faults": faults, "notes": notes, "nowhere": []}[where]
    assert len(faults + notes) == len(found)
    if found:
        assert f"pretrain reads {source!r} {times}.0 times" in found[0]
