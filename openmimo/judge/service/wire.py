"""Programs, tests and verdicts as JSON: what a request and its reply hold.

    {"suites": [{"tests": [{"stdin": "1\\n", "stdout": "2\\n"}], "limits": {"cpu_seconds": 2}}],
     "solutions": [{"id": "a", "program": "print(int(input()) + 1)"}]}

A suite is a list of tests with their limits, sent once for all solutions that name it by its
index (default: 0). Tests are written as in `records.py`; an output may have a `checker` instead of
a `rule`, and inputs and outputs that are no text are {"base64": ...}. Text may hold lone
surrogates: an escape in JSON, and the same program here and there. The reply has a line of JSON
for each solution, {"id": "a", "tests": [{"status": "ok", ...}]}.

Checked here, so that a judge gets what is well-formed, whoever sent it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)

from openmimo.errors import UserError, shown
from openmimo.judge import cases
from openmimo.judge.cases import (
    MAX_MEMORY_MB,
    MAX_OUTPUT_BYTES,
    MAX_SECONDS,
    AssertTest,
    CallTest,
    Checker,
    Limits,
    Program,
    StdioTest,
    Test,
    check_solution,
)
from openmimo.judge.compare import FLOATS, TOKENS, Rule, RuleName
from openmimo.judge.verdict import SolutionVerdict, Status, Verdict

MAX_ID = 200  # characters

Form = TypeVar("Form", bound=BaseModel)

# The first key that tells a test's kind.
_KINDS = {"stdin": "stdio", "args": "call", "code": "assert"}


class BadBodyError(UserError):
    """A body that says nothing sensible; `field` is the path of what is at fault, if it has one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Solution:
    """One solution of a request: what `Judge.submit` takes, and the client's name for it."""

    id: str
    program: Program
    tests: tuple[Test, ...]
    limits: Limits
    order: tuple[int, ...]
    stop_at_failure: bool


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("it must be text")
    return value


def _data(value: object) -> str | bytes:
    if isinstance(value, dict) and list(value) == ["base64"]:
        try:
            return base64.b64decode(_text(value["base64"]), validate=True)
        except ValueError:
            raise ValueError("base64 that cannot be read") from None
    if not isinstance(value, str):
        raise ValueError('it must be text or {"base64": TEXT}')
    return value


def _kind(value: object) -> str | None:
    keys = value if isinstance(value, dict) else {}
    return next((kind for key, kind in _KINDS.items() if key in keys), None)


# Not pydantic's own text: that refuses lone surrogates, which programs may hold.
Text = Annotated[str, PlainValidator(_text)]
Data = Annotated[str | bytes, PlainValidator(_data)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _RuleForm(_Form):
    name: RuleName
    absolute: float = Field(Rule().absolute, ge=0)
    relative: float = Field(Rule().relative, ge=0)
    whole_numbers: bool = False
    ignore_case: bool = False

    def build(self) -> Rule:
        return Rule(**dict(self))


class _ProgramForm(_Form):
    source: Text
    language: cases.Language = "python"
    files: dict[str, Text] = {}

    def build(self) -> Program:
        return Program(self.source, self.language, tuple(self.files.items()))


# A name stands for the rule, a text for the Python program.
RuleField = Annotated[
    _RuleForm, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)
]
ProgramField = Annotated[
    _ProgramForm,
    BeforeValidator(lambda value: {"source": value} if isinstance(value, str) else value),
]


class _CheckerForm(_Form):
    program: ProgramField
    protocol: cases.Protocol = "testlib"
    arguments: list[Text] = []

    def build(self) -> Checker:
        return Checker(self.program.build(), self.protocol, tuple(self.arguments))


class _StdioForm(_Form):
    stdin: Data
    stdout: Data
    rule: RuleField | None = None
    checker: _CheckerForm | None = None

    @model_validator(mode="after")
    def _one_decides(self) -> _StdioForm:
        if self.rule and self.checker:
            raise ValueError("give a rule or a checker, not both")
        return self

    def build(self) -> StdioTest:
        by = self.checker or self.rule
        return StdioTest(self.stdin, self.stdout, by.build() if by else TOKENS)


class _CallForm(_Form):
    entry_point: Text
    args: list[Any]
    expected: Any
    rule: RuleField | None = None

    def build(self) -> CallTest:
        rule = self.rule.build() if self.rule else FLOATS
        return CallTest(self.entry_point, self.args, self.expected, rule)


class _AssertForm(_Form):
    code: Text
    setup: Text = ""
    names: list[Text] = []

    def build(self) -> AssertTest:
        return AssertTest(self.code, self.setup, tuple(self.names))


TestForm = Annotated[
    Annotated[_StdioForm, Tag("stdio")]
    | Annotated[_CallForm, Tag("call")]
    | Annotated[_AssertForm, Tag("assert")],
    Discriminator(
        _kind,
        custom_error_type="test",
        custom_error_message="no test: give stdin and stdout, args and expected, or code",
    ),
]


class _LimitsForm(_Form):
    cpu_seconds: float = Field(Limits().cpu_seconds, gt=0, le=MAX_SECONDS)
    wall_seconds: float = Field(Limits().wall_seconds, gt=0, le=MAX_SECONDS)
    memory_mb: int = Field(Limits().memory_mb, gt=0, le=MAX_MEMORY_MB)
    output_bytes: int = Field(Limits().output_bytes, gt=0, le=MAX_OUTPUT_BYTES)
    max_timeouts: int = Field(0, ge=0)


class _SuiteForm(_Form):
    tests: list[TestForm] = Field(min_length=1, fail_fast=True)
    limits: _LimitsForm = _LimitsForm()


class _SolutionForm(_Form):
    id: str = Field(max_length=MAX_ID)
    suite: int = Field(0, ge=0)
    program: ProgramField
    order: list[int] | None = None
    stop_at_failure: bool = False


class _Batch(_Form):
    suites: list[_SuiteForm] = Field(min_length=1, fail_fast=True)
    solutions: list[_SolutionForm] = Field(min_length=1, fail_fast=True)


def parse_batch(body: bytes, most: Limits | None = None) -> list[Solution]:
    """The solutions of a request, each fit for `Judge.submit`.

    Args:
        most: what a test may ask for at most.

    Raises:
        BadBodyError: it is no JSON, or a field is unknown, missing, impossible or beyond `most`.
    """
    batch = _read(_Batch, body)
    suites = []
    for number, suite in enumerate(batch.suites):
        try:
            tests = tuple(test.build() for test in suite.tests)
        except UserError as error:
            raise BadBodyError(f"suites.{number}: {error}", f"suites.{number}") from error
        limits = Limits(**dict(suite.limits))
        _check_limits(limits, most or limits, f"suites.{number}.limits")
        suites.append((tests, limits))
    solutions: dict[str, Solution] = {}
    for number, form in enumerate(batch.solutions):
        field = f"solutions.{number}"
        if form.suite >= len(suites):
            message = f"{field}.suite: there is no suite {form.suite}, only {len(suites)}"
            raise BadBodyError(message, f"{field}.suite")
        if form.id in solutions:
            message = f"{field}.id: {shown(form.id)} is another solution's"
            raise BadBodyError(message, f"{field}.id")
        try:
            solutions[form.id] = _solution(form, *suites[form.suite])
        except UserError as error:
            raise BadBodyError(f"{field}: {error}", field) from error
    return list(solutions.values())


def _check_limits(limits: Limits, most: Limits, where: str) -> None:
    for name in ("cpu_seconds", "wall_seconds", "memory_mb", "output_bytes"):
        asked, given = getattr(limits, name), getattr(most, name)
        if asked > given:
            message = f"{where}.{name} is {asked:g}; this service gives a test at most {given:g}"
            raise BadBodyError(message, f"{where}.{name}")


def _solution(form: _SolutionForm, tests: tuple[Test, ...], limits: Limits) -> Solution:
    program, tests, order = check_solution(form.program.build(), tests, form.order)
    return Solution(form.id, program, tests, limits, order, form.stop_at_failure)


def encode_suite(tests: Sequence[Test], limits: Limits) -> str:
    """A suite, for `encode_batch`. Equal tests and limits give equal texts."""
    return json.dumps({"tests": list(map(_test_record, tests)), "limits": asdict(limits)})


def encode_solution(
    id: str, program: Program, order: Sequence[int] | None, stop_at_failure: bool
) -> dict[str, Any]:
    """A solution, for `encode_batch`; all but its suite."""
    fields: dict[str, Any] = {"id": id, "program": _program_record(program)}
    if order is not None:
        fields["order"] = list(order)
    return fields | {"stop_at_failure": stop_at_failure}


def encode_batch(solutions: Sequence[tuple[str, dict[str, Any]]]) -> bytes:
    """A request's body, from suites and solutions that are encoded; equal suites go once."""
    places: dict[str, int] = {}
    lines = [
        json.dumps(fields | {"suite": places.setdefault(suite, len(places))})
        for suite, fields in solutions
    ]
    return f'{{"suites":[{",".join(places)}],"solutions":[{",".join(lines)}]}}'.encode()


def _test_record(test: Test) -> dict[str, Any]:
    if isinstance(test, CallTest):
        fields = {"entry_point": test.entry_point, "args": list(test.args)}
        return {**fields, "expected": test.expected, "rule": asdict(test.rule)}
    if isinstance(test, AssertTest):
        return {"code": test.code, "setup": test.setup, "names": list(test.names)}
    record = {"stdin": _data_record(test.stdin), "stdout": _data_record(test.expected)}
    if isinstance(test.rule, Rule):
        return record | {"rule": asdict(test.rule)}
    program = _program_record(test.rule.program)
    checker = {"protocol": test.rule.protocol, "arguments": list(test.rule.arguments)}
    return record | {"checker": {"program": program, **checker}}


def _program_record(program: Program) -> dict[str, Any]:
    files = dict(program.files)
    return {"source": program.source, "language": program.language, "files": files}


def _data_record(data: str | bytes) -> str | dict[str, str]:
    return data if isinstance(data, str) else {"base64": base64.b64encode(data).decode()}


class _VerdictForm(BaseModel):
    status: Annotated[Status, PlainValidator(Status)]
    detail: Text = ""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    unsafe: bool = False


class _Line(BaseModel):
    """A line of a reply: a verdict, or why there are no more."""

    id: str = ""
    tests: list[_VerdictForm] = []
    error: dict[str, Any] | None = None


def encode_verdict(id: str, verdict: SolutionVerdict) -> bytes:
    """A line of the reply."""
    line = {"id": id, "tests": [asdict(test) for test in verdict.tests]}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def parse_verdict(line: str) -> tuple[str, SolutionVerdict]:
    """A line of the reply.

    Raises:
        BadBodyError: it is none, or says that the service could not go on.
    """
    reply = _read(_Line, line)
    if reply.error is not None:
        raise BadBodyError(str(reply.error.get("message", "no reason given")))
    return reply.id, SolutionVerdict(tuple(Verdict(**dict(test)) for test in reply.tests))


def _read(form: type[Form], text: str | bytes) -> Form:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBodyError(f"no valid JSON: {error}") from None
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> BadBodyError:
    """The first fault, by the path of its field."""
    fault = error.errors(include_url=False, include_context=False)[0]
    kinds = _KINDS.values()
    path = ".".join(str(part) for part in fault["loc"] if part not in kinds)
    message = f"{fault['msg'].removeprefix('Value error, ')}; it is {shown(fault['input'])}"
    return BadBodyError(f"{path}: {message}" if path else message, path or None)
