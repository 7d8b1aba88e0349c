"""What travels comes out as it went in; what makes no sense is refused by the field's name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.judge import (
    AssertTest,
    CallTest,
    Checker,
    Limits,
    Program,
    Rule,
    SolutionVerdict,
    Status,
    StdioTest,
    Verdict,
)
from openmimo.judge.service.wire import (
    BadBodyError,
    encode_batch,
    encode_solution,
    encode_suite,
    encode_verdict,
    parse_batch,
    parse_verdict,
)

# Lone surrogates too: programs and answers may hold them.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
numbers = st.floats(0, 1e6)
rules = st.builds(
    Rule,
    st.sampled_from(["tokens", "lines", "exact", "floats", "unordered", "livecodebench"]),
    numbers,
    numbers,
    st.booleans(),
    st.booleans(),
)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,9}", fullmatch=True)
files = st.dictionaries(names, texts, max_size=2).map(lambda each: tuple(each.items()))
programs = st.builds(Program, texts, st.sampled_from(["python", "cpp"]), files)
checkers = st.builds(
    Checker,
    programs,
    st.sampled_from(["testlib", "kattis", "cms"]),
    st.lists(texts, max_size=2).map(tuple),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
data = texts | st.binary(max_size=20)
stdio = st.builds(StdioTest, data, data, rules | checkers)
tests = st.one_of(
    stdio,
    st.builds(CallTest, texts, st.lists(values, max_size=3), values, rules),
    st.builds(AssertTest, texts, texts, st.lists(texts, max_size=2).map(tuple)),
)
limits = st.builds(
    Limits,
    st.floats(0.001, 3600),
    st.floats(0.001, 3600),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 30),
    st.integers(0, 10),
)


@settings(max_examples=50)
@given(st.data())
def test_a_batch_comes_out_as_it_went_in(draw):
    sent = []
    for number in range(draw.draw(st.integers(1, 3))):
        program = draw.draw(programs)
        kinds = tests if program.language == "python" else stdio
        suite = draw.draw(st.lists(kinds, min_size=1, max_size=3))
        order = draw.draw(st.none() | st.permutations(range(len(suite))))
        sent.append(
            (str(number), program, suite, draw.draw(limits), order, draw.draw(st.booleans()))
        )
    body = encode_batch(
        [
            (encode_suite(suite, limit), encode_solution(id, program, order, stop))
            for id, program, suite, limit, order, stop in sent
        ]
    )
    for solution, (id, program, suite, limit, order, stop) in zip(
        parse_batch(body), sent, strict=True
    ):
        assert (solution.id, solution.program, solution.limits) == (id, program, limit)
        assert solution.tests == tuple(suite)
        assert list(solution.order) == (list(range(len(suite))) if order is None else order)
        assert solution.stop_at_failure == stop


def test_equal_suites_travel_once():
    suites = [encode_suite([StdioTest("x" * 1000, "")], Limits()) for _ in range(3)]
    body = encode_batch([(s, encode_solution(str(n), Program(""), None, False))
                         for n, s in enumerate(suites)])  # fmt: skip
    assert len(body) < 2000
    assert len(parse_batch(body)) == 3


verdicts = st.builds(Verdict, st.sampled_from(Status), texts, numbers, numbers, st.booleans())


@given(texts, st.lists(verdicts, max_size=3))
def test_a_verdict_comes_out_as_it_went_in(id, found):
    verdict = SolutionVerdict(tuple(found))
    line = encode_verdict(id, verdict)
    assert line.count(b"\n") == 1
    assert len(line.decode().splitlines()) == 1  # U+2028 and the like would end it early
    assert parse_verdict(line.decode()) == (id, verdict)


def body(**changes):
    solution = {"id": "a", "program": "print(1)"}
    suite = {"tests": [{"stdin": "", "stdout": "1"}]}
    return {"suites": [suite], "solutions": [solution]} | changes


def changed(path, value):
    """The body with the value at a dotted path replaced, or added."""
    whole = body()
    *parents, last = path.split(".")
    place = whole
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[int(last) if last.isdigit() else last] = value
    return whole


REFUSED = {
    "suites": [],
    "solutions": "none",
    "extra": 1,
    "suites.0.tests": [],
    "suites.0.tests.0": {"in": "1"},
    "suites.0.tests.0.stdin": {"base64": "?"},
    "suites.0.tests.0.stdout": 5,
    "suites.0.tests.0.rule": "vague",
    "suites.0.tests.0.rule.absolute": -1,
    "suites.0.tests.0.checker": {"program": 3},
    "suites.0.tests.0.tolerance": 1,
    "suites.0.limits": {"cpu_seconds": 0},
    "suites.0.limits.cpu_seconds": 1e9,
    "suites.0.limits.memory_mb": 1 << 60,
    "suites.0.limits.wall_seconds": float("nan"),
    "solutions.0.id": 7,
    "solutions.0.suite": 1,
    "solutions.0.order": [1],
    "solutions.0.program": {"source": "", "language": "cobol"},
    "solutions.0.program.files": {"../../etc/x.h": ""},
    "solutions.0.stop": True,
}


@pytest.mark.parametrize(("path", "value"), REFUSED.items(), ids=REFUSED)
def test_a_bad_field_is_named(path, value):
    whole = body()
    if path.endswith(("rule.absolute", "limits.cpu_seconds", "limits.memory_mb",
                      "limits.wall_seconds", "program.files")):  # fmt: skip
        parent, _, last = path.rpartition(".")
        inner = {"rule": {"name": "floats"}, "program": {"source": ""}}.get(parent.split(".")[-1])
        whole = changed(parent, {**(inner or {}), last: value})
    else:
        whole = changed(path, value)
    with pytest.raises(BadBodyError) as caught:
        parse_batch(json.dumps(whole).encode())
    assert caught.value.field is not None
    assert path.startswith(caught.value.field) or caught.value.field.startswith(path)
    assert caught.value.field in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"suites": 1e999}']
)
def test_rubbish_is_refused(text):
    with pytest.raises(BadBodyError):
        parse_batch(text)


def test_solutions_share_no_name():
    twice = body(solutions=[{"id": "a", "program": ""}] * 2)
    with pytest.raises(BadBodyError, match="another solution's"):
        parse_batch(json.dumps(twice).encode())


@pytest.mark.parametrize("line", ["{}x", '{"id": 1}', '{"tests": [{"status": "fine"}]}', "7"])
def test_a_line_that_is_no_verdict_is_refused(line):
    with pytest.raises(BadBodyError):
        parse_verdict(line)


def test_a_line_may_say_why_there_are_no_more():
    with pytest.raises(BadBodyError, match="about to stop"):
        parse_verdict('{"error": {"message": "the service is about to stop"}}')
