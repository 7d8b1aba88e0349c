"""The eval stage, end to end on tiny models: real engine, real judge, real files."""

import json

import pytest

from openmimo.errors import UserError
from openmimo.evals.exam import Exam
from openmimo.evals.run import VARIANTS
from openmimo.evals.run import run as run_eval
from openmimo.evals.samples import SampleFile
from openmimo.evals.sampling import sample_missing
from openmimo.report.load import load_run
from openmimo.rewards.grading import ALL_TESTS
from openmimo.rewards.pool import RewardPool


def read_samples(run, variant):
    path = run.dir / "stages" / "eval" / "samples" / f"{variant}.jsonl"
    samples = map(json.loads, path.read_text().splitlines())
    return {(sample["id"], sample["sample"]): sample for sample in samples}


def without_times(path):
    results = json.loads(path.read_text())
    for measured in results["mtp"].values():
        del measured["plain_seconds"], measured["speculative_seconds"]
    return results


def test_the_report_can_read_what_four_variants_scored(run, make_recipe, capsys):
    run_eval(make_recipe(), run)
    results = load_run(run.dir).results
    assert set(results.variants) == set(results.mtp) == set(VARIANTS)
    assert results.sampling["samples_per_problem"] == 3

    rl = results.variants["rl"]
    assert (rl.pass_at_1, rl.n, rl.samples, rl.unscorable) == (5 / 8, 8, 3, 0)
    assert rl.low < rl.pass_at_1 < rl.high
    assert rl.pass_at_k == {1: 5 / 8, 2: 5 / 8, 3: 5 / 8}
    assert {name: score.pass_at_1 for name, score in rl.by_domain.items()} == {
        "math": 3 / 4, "code": 2 / 4,
    }  # fmt: skip
    assert {name: (s.pass_at_1, s.n) for name, s in rl.by_tier.items()} == {
        "train": (3 / 5, 5), "hard": (2 / 3, 3),
    }  # fmt: skip
    assert set(rl.by_family) == {"sums", "lists"}
    assert rl.truncated == 0
    assert rl.response_length == 17  # with the stop token
    assert len({(e.prompt, e.correct) for e in rl.examples}) == len(rl.examples) == 7

    base = results.variants["base"]
    assert base.pass_at_1 == 0
    assert base.truncated > 0.5
    # The random model's favourite tokens are none of the tokenizer's.
    assert all(sample["response"] for sample in read_samples(run, "base").values())

    perfect, random = results.mtp["rl"], results.mtp["base"]
    assert perfect.acceptance == perfect.conditional == [1, 1, 1]
    assert perfect.tokens_per_forward == 17 / 5  # up to four at a time
    assert perfect.prompts == random.prompts == 5
    assert perfect.identical
    assert random.identical
    assert random.acceptance[0] < 0.9
    lines = [line for line in capsys.readouterr().out.splitlines() if "24/24" in line]
    assert len(lines) == 4
    assert "pass_rate 0.625" in lines[3]


def test_a_killed_stage_goes_on_from_its_samples(run, make_recipe):
    run_eval(make_recipe(), run)
    stage = run.dir / "stages" / "eval"
    results, base = without_times(stage / "results.json"), read_samples(run, "base")

    run_eval(make_recipe(), run)  # done: nothing happens
    (stage / "done.json").unlink()
    (stage / "results.json").unlink()
    (stage / "samples" / "rl.jsonl").unlink()
    (stage / "mtp" / "rl.json").unlink()
    path = stage / "samples" / "base.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]) + lines[10][:20])  # torn
    kept = stage / "samples" / "sft.jsonl"
    before = kept.stat().st_mtime_ns

    run_eval(make_recipe(), run)
    assert path.read_bytes().startswith(b"".join(lines[:10]))
    assert read_samples(run, "base") == base
    assert kept.stat().st_mtime_ns == before
    assert without_times(stage / "results.json") == results
    assert run.done("eval")


class AfterSteps:
    """An interrupt that comes after some looks at it."""

    def __init__(self, steps):
        self.left = steps

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0


def test_an_interrupt_keeps_what_is_finished(tmp_path, parrot, tokenizer, problems, make_recipe):
    exam = Exam({p["id"]: p for p in problems}, tokenizer, make_recipe().eval, seed=0)
    path = tmp_path / "rl.jsonl"
    counts = []
    with RewardPool(grading=ALL_TESTS) as pool:
        while len(counts) < 2 or counts[-1] > counts[-2]:
            # All of the first seven answers end at the same step.
            with SampleFile(path, exam.sample_keys()) as file:
                sample_missing("rl", parrot, exam, file, pool, AfterSteps(0))
                counts.append(len(file.samples))
    assert counts == [7, 14, 21, 24, 24]
    assert len(path.read_text().splitlines()) == 24


def test_an_interrupted_stage_is_not_done(run, make_recipe):
    run.interrupt.requested = True
    run_eval(make_recipe(), run)
    assert run.done("eval") is None
    run.interrupt.requested = False
    run_eval(make_recipe(), run)
    assert run.done("eval")


def test_other_settings_seeds_and_models_start_over(run, make_recipe, capsys):
    run_eval(make_recipe("eval.samples=1", "eval.mtp_prompts=1"), run)
    first = run.done("eval")
    run_eval(make_recipe("eval.samples=1", "eval.mtp_prompts=1"), run)
    assert run.done("eval") == first
    for recipe in (
        make_recipe("eval.samples=2", "eval.mtp_prompts=1"),
        make_recipe("eval.samples=2", "eval.mtp_prompts=1", "seed=5"),
    ):
        run_eval(recipe, run)
        assert "eval: starting over" in capsys.readouterr().out
        assert len(read_samples(run, "sft")) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no problems"),
        ('{"id": "x"', "not valid JSON"),
        ('{"domain": "art"}', "no verifier"),
        ('{"domain": ["math"]}', "no verifier"),
        ('{"domain": "math", "id": 3}', "'id' is missing or no str"),
        ('{"domain": "code", "id": "a", "family": "f", "tier": "t", "prompt": "p"}', "entry_point"),
    ],
)
def test_bad_problem_files_are_refused(run, make_recipe, content, message):
    (run.dir / "stages" / "data" / "problems" / "heldout.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        run_eval(make_recipe(), run)


def test_bad_problems_are_refused(run, make_recipe, problems):
    path = run.dir / "stages" / "data" / "problems" / "heldout.jsonl"
    path.write_text(json.dumps(problems[0]) + "\n" + json.dumps(problems[0]))
    with pytest.raises(UserError, match="'m0' occurs twice"):
        run_eval(make_recipe(), run)
    path.write_text(json.dumps(problems[0] | {"prompt": "What? " * 300}))
    with pytest.raises(UserError, match=r"problem m0 has .* no room for an answer"):
        run_eval(make_recipe(), run)


def test_missing_stages_and_files_are_refused(run, make_recipe):
    (run.dir / "stages" / "rl" / "done.json").unlink()
    with pytest.raises(UserError, match="run `mimo rl` on it first"):
        run_eval(make_recipe(), run)
    run.stage("rl", "rl settings").finish()
    (run.dir / "stages" / "data" / "problems" / "heldout.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot read .*heldout"):
        run_eval(make_recipe(), run)


GOOD = {
    "id": "m0", "sample": 0, "response": "", "tokens": 1, "truncated": False, "correct": None,
    "status": "judge_error", "detail": "", "passed": "",
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "{broken",
        "[]",
        "{}",
        json.dumps(GOOD | {"id": "another problem"}),
        json.dumps(GOOD | {"sample": 3}),
        json.dumps(GOOD | {"correct": "yes"}),
    ],
)
def test_broken_samples_are_refused(tmp_path, line):
    keys = [("m0", n) for n in range(3)]
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    with SampleFile(path, keys) as file:
        assert list(file.samples) == keys[:1]
    path.write_text(line + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match=r"samples.jsonl:1"):
        SampleFile(path, keys)
