"""The fields of a request body: which there are, what they may hold, which must be neutral."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from openmimo.errors import shown
from openmimo.inference.protocol import MAX_ALTERNATIVES, MAX_STOP_IDS
from openmimo.web.errors import ApiError

MAX_STOPS = 4  # OpenAI's limit

# Far more than a call has. Each is many times as large in memory as it is in JSON.
MAX_MESSAGES = MAX_PROMPTS = 10_000
MAX_PARTS = 1000

# They change nothing in an answer, here or there.
WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
     "prompt_cache_key", "prompt_cache_retention"}
)  # fmt: skip

# Fields of OpenAI's API, or of vLLM's, that would change the answer and are not implemented, with
# the values that ask for nothing. null asks for nothing in any field.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "suffix": ("",),
    "best_of": (1,),
}

# pydantic would report how each of the forms does not fit.
FORMS = {
    "prompt": "a string, a list of strings, token ids, or a list of lists of token ids; at most "
    f"{MAX_PROMPTS} prompts",
    "content": f"a string or a list of at most {MAX_PARTS} text parts; images, audio and files are "
    "not supported",
}

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# The forms of a prompt are tried in turn: a million ids would make a million errors of no text.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True, max_length=MAX_PROMPTS)]
ManyTokenIds = Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_PROMPTS)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Part):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingFields(_Part):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, lt=1)
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=MAX_STOPS)
    # The server adds the tokenizer's two end tokens.
    stop_token_ids: list[TokenId] = Field([], max_length=MAX_STOP_IDS - 2)
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, values: dict[str, Any]) -> dict[str, Any]:
        stop = values.get("stop")
        return {**values, "stop": [stop]} if isinstance(stop, str) else values

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> SamplingFields:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options goes with stream=true alone")
        return self


class TextPart(_Part):
    """A part of a message; images and audio are not understood."""

    type: Literal["text"]
    text: str


class Message(_Part):
    """One turn. An earlier answer may come as it was received; its thinking is left out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
    reasoning_content: str | None = None
    annotations: list[Any] | None = Field(None, max_length=0)

    @property
    def text(self) -> str:
        """All parts together."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatFields(SamplingFields):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_ALTERNATIVES)

    @model_validator(mode="before")
    @classmethod
    def _messages_without_nulls(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Clients send answers back with `"tool_calls": null` and the like."""
        messages = values.get("messages")
        if isinstance(messages, list):
            messages = [_without_nulls(m) if isinstance(m, dict) else m for m in messages]
            values = {**values, "messages": messages}
        return values

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatFields:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("give max_completion_tokens or max_tokens, not both")
        return self


class CompletionFields(SamplingFields):
    """Body of /v1/completions."""

    prompt: str | Texts | TokenIds | ManyTokenIds
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionFields:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which needs echo=true")
        if self.stream and self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs cannot be streamed")
        return self


Fields = TypeVar("Fields", ChatFields, CompletionFields)


def parse(body: bytes, form: type[Fields]) -> Fields:
    """Read a request body.

    Raises:
        ApiError: it is no JSON object, or a field is unknown, impossible or not implemented.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    values = _without_nulls(values)
    for name in list(values):
        if name not in form.model_fields:
            _check_unused(name, values.pop(name), form)
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    """The first fault, by the path of its field."""
    fault = error.errors(include_url=False, include_context=False)[0]
    path = list(map(str, fault["loc"]))
    message = fault["msg"].removeprefix("Value error, ")
    for name in FORMS.keys() & set(path[:-1]):
        path = path[: path.index(name) + 1]
        return ApiError(400, f"{'.'.join(path)} must be {FORMS[name]}", ".".join(path))
    if path:
        message = f"{'.'.join(path)}: {message}; it is {shown(fault['input'])}"
    return ApiError(400, message, ".".join(path) or None, fault["type"])


def _check_unused(name: str, value: object, form: type[BaseModel]) -> None:
    """Refuse a field that is not used, unless its value would change nothing."""
    if name in WITHOUT_EFFECT:
        return
    if name in NEUTRAL:
        if value in NEUTRAL[name]:
            return
        message = f"{name} is not supported: leave it out"
        raise ApiError(400, message, name, "unsupported_parameter")
    known = [*form.model_fields, *WITHOUT_EFFECT, *NEUTRAL]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {near[0]}?" if near else ": leave it out"
    raise ApiError(400, f"unknown field {shown(name)}{hint}", name[:100], "unknown_parameter")


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
