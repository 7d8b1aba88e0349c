"""The data stage on a small corpus: what it leaves on disk, and that it can be stopped."""

import importlib.util
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.data import build, problem_sets
from openmimo.data.build import Corpus, decontaminate, pieces, verify_clean
from openmimo.data.decontaminate import DecontaminationIndex
from openmimo.data.documents import SOURCES, Document, read_records
from openmimo.data.problem_sets import ProblemSets
from openmimo.data.problems.mathematics import digit_sum
from openmimo.data.sft_filters import has_final_answer, is_mixed
from openmimo.data.shards import ShardReader
from openmimo.data.synthesis import Chat
from openmimo.errors import UserError
from openmimo.report.load import load_run
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

CAP = 2


def recipe(seed: int = 3, cap: int = CAP, steps: int = 1, **data: Any) -> Recipe:
    mixture = dict.fromkeys(SOURCES, 0.25)
    row = {
        "stage": "one",
        "until": 1000,
        "learning_rate": (1e-3, 1e-3),
        "batch": (1, 1),
        "length": 64,
        "rope_base": 1e4,
        "mtp_weight": 0.1,
        "mixture": mixture,
    }
    model = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }
    small = {
        "vocab_size": 400,
        "harvest": {"general": 40_000, "math": 40_000, "code": 40_000},
        "math_pages": 200,
        "code_pages": 100,
        "synthetic_responses": 60,
        "sft_queries": 100,
        "rl_problems": 20,
        "heldout_problems": 24,
    }
    return Recipe.model_validate(
        {
            "name": "small",
            "seed": seed,
            "model": model,
            "data": {**small, **data},
            "pretrain": {"schedule": [row]},
            "mtp_heads": {"mixture": mixture, "length": 64},
            "sft": {"responses_per_query": cap, "steps": steps, "length": 64},
            "rl": {},
        }
    )


@pytest.fixture(scope="module", autouse=True)
def _few_hard_problems():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem_sets, "HARD_CODE_PROBLEMS", 6)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished data stage."""
    folder = tmp_path_factory.mktemp("data") / "run"
    with Run(folder) as run:
        build.run(recipe(), run)
    return folder


@pytest.fixture(scope="module")
def data(finished: Path) -> Path:
    return finished / "stages/data"


def records(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_records(path)]


def words(text: str) -> str:
    return " ".join(text.split())


def shard_texts(data: Path) -> dict[str, list[str]]:
    tokenizer = Tokenizer.load(data / "tokenizer")
    texts = {}
    for source in SOURCES:
        reader = ShardReader(data / "shards", source, seed=0)
        texts[source] = [tokenizer.decode(reader.stored(i).tolist()) for i in range(len(reader))]
    return texts


def test_problems_on_disk(data: Path) -> None:
    heldout, rl = (records(data / f"problems/{name}.jsonl") for name in ("heldout", "rl"))
    assert Counter((p["domain"], p["tier"]) for p in heldout) == Counter(
        {(domain, tier): 6 for domain in ("math", "code") for tier in ("train", "hard")}
    )
    assert Counter(p["tier"] for p in rl) == {"train": 20, "hard": 6}
    assert len({p["id"] for p in heldout + rl}) == 50
    assert all(p["answer"] if p["domain"] == "math" else p["tests"] for p in heldout + rl)


def test_no_training_text_on_disk_holds_a_heldout_prompt(data: Path) -> None:
    heldout = [words(p["prompt"]) for p in records(data / "problems/heldout.jsonl")]
    texts = [text for source in shard_texts(data).values() for text in source]
    texts += [f"{s['prompt']}\n{s['response']}" for s in records(data / "sft.jsonl")]
    texts += [p["prompt"] for p in records(data / "problems/rl.jsonl")]
    assert len(texts) > 400
    everything = "\n".join(map(words, texts))
    assert not [prompt for prompt in heldout if prompt in everything]


def test_shards(data: Path) -> None:
    tokenizer = Tokenizer.load(data / "tokenizer")
    stats = json.loads((data / "stats.json").read_text())["sources"]
    assert tokenizer.vocab_size == 400
    for source in SOURCES:
        reader = ShardReader(data / "shards", source, seed=0)
        documents = [reader.stored(number) for number in range(len(reader))]
        assert max(map(len, documents)) <= 1024
        assert stats[source]["tokens"] == sum(map(len, documents))
        ends = np.concatenate(documents) == tokenizer.doc_end_id
        if source == "synthetic":
            assert not ends.any()
            assert all(ids[0] == tokenizer.turn_start_id for ids in documents)
            assert all(ids[-1] == tokenizer.eos_id for ids in documents)
        else:
            assert ends.sum() == stats[source]["documents"] <= len(documents)
    texts = shard_texts(data)
    assert sum(text.startswith("Question: ") for text in texts["math"]) > 100
    assert sum(text.startswith("Question: Write a Python") for text in texts["code"]) > 30
    assert not any("\\boxed" in text for text in texts["general"])


def test_sft_samples_passed_every_filter(data: Path) -> None:
    samples = records(data / "sft.jsonl")
    counts = json.loads((data / "stats.json").read_text())["sft"]
    assert all(set(s) == {"prompt", "response", "query_id", "domain"} for s in samples)
    assert all(has_final_answer(s["response"]) for s in samples)
    assert not any(is_mixed(s["response"], s["prompt"]) for s in samples)
    per_query = Counter(s["query_id"] for s in samples)
    assert max(per_query.values()) == CAP
    assert len(samples) == counts["kept"]
    assert len(per_query) == counts["queries kept"] > 80
    reasons = ("cut off", "no final answer", "mixed scripts", "contaminated", "over the cap")
    dropped = sum(counts[reason] for reason in reasons)
    assert counts["raw"] == counts["kept"] + dropped
    assert all(counts[reason] for reason in reasons)


def test_the_report_reads_the_stats(finished: Path) -> None:
    stats = load_run(finished).stats
    assert stats is not None
    assert set(stats.sources) == set(SOURCES)
    assert stats.sources["math"].documents > 200
    assert stats.dedup["documents"] > 0
    assert stats.decontamination["heldout_problems"] == 24
    flat = [*stats.dedup.values(), *stats.domains.values(), *stats.decontamination.values()]
    assert all(isinstance(value, int) for value in flat)


def outputs(data: Path) -> dict[str, bytes]:
    clock = ("done.json", "state.json")
    files = [path for path in data.rglob("*") if path.is_file() and path.name not in clock]
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in files}


def test_a_stopped_stage_starts_over_and_ends_with_the_same_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path / "run") as run:
        run.interrupt.requested = True
        with pytest.raises(KeyboardInterrupt):
            build.run(recipe(), run)
        assert capsys.readouterr().out.count("\n") == 1, "stops after its first step"
        assert run.done("data") is None
        run.interrupt.requested = False
        # What an attempt that was killed later would have left, in part.
        left = tmp_path / "run/stages/data"
        for name in ("shards/math.json", "shards/math.bin", "sft.jsonl", "tokenizer/x.json"):
            (left / name).parent.mkdir(exist_ok=True)
            (left / name).write_bytes(b"torn")
        build.run(recipe(), run)
    assert outputs(left) == outputs(data)


def test_a_finished_stage_is_left_alone(
    finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with Run(finished) as run:
        build.run(recipe(steps=7), run)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert capsys.readouterr().out == ""


def test_the_hash_covers_what_the_files_depend_on() -> None:
    same = build.data_hash(recipe())
    assert build.data_hash(recipe(steps=9)) == same
    others = [recipe(seed=4), recipe(cap=8), recipe(math_pages=201)]
    assert len({same, *map(build.data_hash, others)}) == 4


def test_files_that_only_share_a_setting_s_name_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "qwen2"):
        before = build.data_hash(recipe(tokenizer=name))
        Path(name).mkdir()
        Path(name, "tokenizer.json").write_text("{}")
        assert build.data_hash(recipe(tokenizer=name)) == before
    given = build.data_hash(recipe(tokenizer="./train"))
    Path("train/tokenizer.json").write_text("{ }")
    assert build.data_hash(recipe(tokenizer="./train")) != given


def test_a_given_tokenizer_is_used_and_kept(data: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    Tokenizer.load(data / "tokenizer").save(given)
    (given / "special_tokens_map.json").write_text("{ }")
    # data.vocab_size is not read, so it may exceed the model's.
    settings = recipe(tokenizer=str(given), vocab_size=100_000)
    with Run(tmp_path / "run") as run:
        build.run(settings, run)
    left = tmp_path / "run/stages/data"
    for path in given.iterdir():
        assert (left / "tokenizer" / path.name).read_bytes() == path.read_bytes()
    assert shard_texts(left) == shard_texts(data)


def test_a_tokenizer_that_does_not_fit_is_refused_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large, chatless = tmp_path / "large", tmp_path / "chatless"
    content = json.loads((data / "tokenizer/tokenizer.json").read_text())
    chatless.mkdir()
    (chatless / "tokenizer.json").write_text(
        json.dumps({**content, "added_tokens": content["added_tokens"][:1]})
    )
    last = content["added_tokens"][-1]
    more = [{**last, "content": f"<{n}>", "id": last["id"] + 1 + n} for n in range(113)]
    large.mkdir()
    (large / "tokenizer.json").write_text(
        json.dumps({**content, "added_tokens": content["added_tokens"] + more})
    )
    for name, message in (
        (str(large), "has 513 ids and model.vocab_size is only 512"),
        (str(chatless), "im_start"),
        ("qwen3", "use train, qwen2"),
        (str(tmp_path / "no.tiktoken"), "cannot read"),
        (str(tmp_path), "no tokenizer in"),
    ):
        with Run(tmp_path / "run") as run, pytest.raises(UserError, match=message):
            build.run(recipe(tokenizer=name), run)
        assert [path.name for path in (tmp_path / "run/stages/data").iterdir()] == ["state.json"]
    assert "heldout" not in capsys.readouterr().out  # the first line of progress


def test_mimo_7b_has_the_published_tokenizer() -> None:
    if importlib.util.find_spec("dashscope") is None:
        pytest.skip("dashscope, which has Qwen's ranks, is not installed")
    mimo = load_config(Recipe, "mimo-7b")
    tokenizer = build.given_tokenizer(mimo)
    assert tokenizer is not None
    assert (tokenizer.vocab_size, mimo.model.vocab_size) == (151_665, 151_680)
    # nano's model has too few rows for it.
    with pytest.raises(UserError, match="'qwen2' has 151665 ids"):
        build.given_tokenizer(recipe(tokenizer="qwen2"))


def page(text: str, source: str = "math") -> Document:
    return Document(text, source, "", text)


def test_contaminated_texts_go_and_the_check_finds_what_stays() -> None:
    problem = digit_sum(random.Random(0), "train")
    sets = ProblemSets([problem], [], [], 0)
    index = DecontaminationIndex({problem.id: problem.prompt})
    spaced = problem.prompt.upper().replace(" ", "\n")
    corpus = Corpus(
        real=[page("Nothing to see."), page(f"Once more: {spaced} Well?", "general")],
        generated=[page(f"Question: {problem.prompt}\nAnswer: 3")],
        chats=[Chat(problem.prompt, "3"), Chat("1 + 1 =", "2")],
    )
    clean = decontaminate(corpus, index)
    assert clean.real == corpus.real[:1]
    assert clean.generated == []
    assert clean.chats == corpus.chats[1:]
    assert clean.contaminated == {"general_real": 1, "math_generated": 1, "synthetic": 1}

    verify_clean(sets, clean, [{"prompt": "1 + 1 =", "response": "2"}])
    dirty = [
        (Corpus(corpus.real, [], []), []),
        (Corpus([], corpus.generated, []), []),
        (Corpus([], [], corpus.chats), []),
        (clean, [{"prompt": problem.prompt, "response": "3"}]),
    ]
    for texts, samples in dirty:
        with pytest.raises(AssertionError, match=problem.id):
            verify_clean(sets, texts, samples)
    with pytest.raises(AssertionError, match=problem.id):
        verify_clean(ProblemSets([problem], [problem], [], 0), clean, [])


@given(st.integers(1, 5000))
def test_pieces_hold_the_document_and_are_about_equal(length: int) -> None:
    ids = list(range(length))
    cut = list(pieces(ids))
    assert [token for piece in cut for token in piece] == ids
    sizes = [len(piece) for piece in cut]
    assert max(sizes) <= build.MAX_DOCUMENT_TOKENS
    assert max(sizes) - min(sizes) <= 1
    assert len(cut) == -(-length // build.MAX_DOCUMENT_TOKENS)
