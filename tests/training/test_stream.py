"""The pre-training stream: every token once and in order, whatever the batch or the restart."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.config.schema import MTPHeadsConfig, ScheduleRow
from openmimo.data.shards import Corpus, write_shard
from openmimo.training.batch import Segment, Share
from openmimo.training.mtp_heads import StreamSource
from openmimo.training.pretrain import PretrainSource
from openmimo.training.schedule import Schedule
from openmimo.training.stream import PackedStream

SOURCES = {"general": 0, "math": 1000, "code": 2000}
MIXTURE = {"general": 0.5, "math": 0.3, "code": 0.2}
Row = list[tuple[list[int], int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources of 30 documents of 1 to 60 tokens; every token tells its source."""
    path = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    for source, low in SOURCES.items():
        documents = [low + random.integers(0, 1000, size=random.integers(1, 61)) for _ in range(30)]
        write_shard(path, source, documents, 3000)
    return path


def open_stream(folder: Path, mixture: Mapping[str, float] = MIXTURE) -> PackedStream:
    stream = PackedStream(Corpus(folder, list(SOURCES), seed=4))
    stream.use(mixture)
    return stream


def plain(row: list[Segment]) -> Row:
    return [(segment.ids.tolist(), segment.loss_from) for segment in row]


def source_of(token: int) -> str:
    return list(SOURCES)[token // 1000]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=40))
def test_rows_hold_the_documents_whole_and_in_order(folder: Path, lengths: list[int]) -> None:
    stream = open_stream(folder)
    rows = [stream.rows(1, length)[0] for length in lengths]
    assert [sum(len(s.ids) for s in row) for row in rows] == lengths
    read = [token for row in rows for segment in row for token in segment.ids.tolist()]
    corpus = Corpus(folder, list(SOURCES), seed=4)
    for source in SOURCES:
        mine = [token for token in read if source_of(token) == source]
        expected: list[int] = []
        position = 0
        while len(expected) < len(mine):
            expected += corpus.document(source, position).tolist()
            position += 1
        assert mine == expected[: len(mine)]
        assert stream.tokens[source] == len(mine)


def test_a_segment_never_joins_two_documents(folder: Path) -> None:
    stream = open_stream(folder)
    corpus = Corpus(folder, list(SOURCES), seed=4)
    documents = {
        source: [corpus.document(source, n).tolist() for n in range(30)] for source in SOURCES
    }
    for _ in range(20):
        for segment in stream.rows(1, 25)[0]:
            ids = segment.ids.tolist()
            found = [
                document[start : start + len(ids)] == ids
                for document in documents[source_of(ids[0])]
                for start in range(len(document) - len(ids) + 1)
            ]
            assert any(found)


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(1, 30))
def test_resuming_in_mid_document_gives_the_same_rows(folder: Path, before: int, size: int) -> None:
    stream = open_stream(folder)
    for _ in range(before):
        stream.plan(size)
    saved = json.dumps(stream.state())
    expected = [plain(stream.rows(1, size)[0]) for _ in range(15)]
    resumed = PackedStream(Corpus(folder, list(SOURCES), seed=4))
    resumed.restore(json.loads(saved))
    resumed.use(MIXTURE)  # as a stage does on every step
    assert [plain(resumed.rows(1, size)[0]) for _ in range(15)] == expected
    assert resumed.state() == stream.state()


def test_the_state_is_a_snapshot(folder: Path) -> None:
    stream = open_stream(folder)
    stream.plan(10)
    state = stream.state()
    expected = plain(stream.rows(1, 30)[0])
    stream.plan(30)
    stream.restore(state)
    assert plain(stream.rows(1, 30)[0]) == expected


def test_rows_do_not_depend_on_the_batch(folder: Path) -> None:
    def rows(batch: int) -> list[list[int]]:
        config = MTPHeadsConfig(mixture=MIXTURE, steps=12 // batch, batch=batch, length=32)
        source = StreamSource(config, open_stream(folder), rope_base=1e4, pad_id=0)
        steps = [source.step(index) for index in range(source.total_steps)]
        return [row for step in steps for row in step.batch.ids.tolist()]

    assert rows(1) == rows(3) == rows(12)


def test_realised_shares_follow_the_mixture(folder: Path) -> None:
    stream = open_stream(folder)
    for mixture in (MIXTURE, {"general": 0.1, "math": 0.9}):
        stream.use(mixture)
        for _ in range(300):
            stream.plan(32)
        total = sum(stream.tokens.values())
        for source, share in mixture.items():
            assert stream.tokens[source] / total == pytest.approx(share, abs=0.01)


def test_a_document_of_the_mixture_before_is_finished_first(tmp_path: Path) -> None:
    """Its tokens count for neither share, and a stage of nothing else is no division by zero."""
    for source, low in SOURCES.items():
        write_shard(tmp_path, source, [np.arange(low, low + 200)], 3000)
    rows = [
        {"stage": "one", "until": 20, "mixture": {"general": 1.0}},
        {"stage": "two", "until": 60, "mixture": {"math": 1.0}},
        {"stage": "three", "until": 400, "mixture": {"code": 1.0}},
    ]
    common = {"learning_rate": [1.0, 1.0], "batch": [1, 1], "length": 20} | {
        "rope_base": 1e4, "mtp_weight": 0.1,
    }  # fmt: skip
    schedule = Schedule(tuple(ScheduleRow.model_validate(row | common) for row in rows))
    source = PretrainSource(schedule, PackedStream(Corpus(tmp_path, list(SOURCES), 0)), 0)
    read = [source.step(index).batch.ids[0].tolist() for index in range(source.total_steps)]
    assert [token for row in read[:10] for token in row] == list(range(200))
    assert read[10][0] == 2000
    assert source.mixture["two"]["realised"] == {"math": 0.0}
    assert source.mixture["three"]["realised"] == {"code": 1.0}


def table(*rows: dict[str, object]) -> Schedule:
    common = {"learning_rate": [1.0, 1.0], "rope_base": 1e4, "mtp_weight": 0.1}
    return Schedule(tuple(ScheduleRow.model_validate(common | row) for row in rows))


def test_realised_shares_are_within_1_percent_at_every_checkpoint(folder: Path) -> None:
    """From the first one on that is late enough: documents of up to 60 tokens, and three sources,
    are off by 120 tokens at most."""
    schedule = table(
        {"stage": "one", "until": 40_000, "batch": [1, 9], "length": 32, "mixture": MIXTURE},
        {
            "stage": "two", "until": 80_000, "batch": [2, 2], "length": 64,
            "mixture": {"general": 0.1, "math": 0.9},
        },
    )  # fmt: skip
    source = PretrainSource(schedule, open_stream(folder), 0)
    for index in range(source.total_steps):
        stage = source.step(index).stage
        found = source.mixture[stage]
        total = sum(found["tokens"].values())
        for name, share in found["target"].items():
            assert abs(found["realised"][name] - share) * total <= 120
            if total >= 12_000:
                assert found["realised"][name] == pytest.approx(share, abs=0.01)
    assert source.mixture["two"]["never_read"] == []


def test_a_source_that_is_never_read_is_named(folder: Path) -> None:
    mixture = {"general": 0.5, "math": 0.4999, "code": 0.0001}
    row = {"stage": "one", "until": 640, "batch": [2, 2], "length": 32, "mixture": mixture}
    source = PretrainSource(table(row), open_stream(folder), 0)
    for index in range(source.total_steps):
        source.step(index)
    assert source.mixture["one"]["never_read"] == ["code"]
    assert source.mixture["one"]["tokens"]["code"] == 0


@settings(max_examples=20)
@given(st.integers(1, 7), st.integers(1, 5))
def test_ranks_read_the_rows_of_one_process(folder: Path, size: int, batch: int) -> None:
    """Together they read every row once, in order, and all keep the same account."""
    row = {
        "stage": "one", "until": 1000, "batch": [1, batch], "length": 32, "mixture": MIXTURE
    }  # fmt: skip
    whole = PretrainSource(table(row), open_stream(folder), 0)
    ranks = [
        PretrainSource(table(row), open_stream(folder), 0, Share(rank, size))
        for rank in range(size)
    ]
    for index in range(whole.total_steps):
        expected = whole.step(index)
        found = [rank.step(index) for rank in ranks]
        ids = np.concatenate([step.batch.ids.numpy() for step in found])
        assert np.array_equal(ids, expected.batch.ids.numpy())
        assert {(step.rows, step.tokens) for step in found} == {(expected.rows, expected.tokens)}
    assert all(rank.state() == whole.state() for rank in ranks)
