"""Faults as OpenAI's API reports them."""

from __future__ import annotations

from collections.abc import Mapping

from openmimo.errors import UserError, printable
from openmimo.serving.service import DrainingError, EngineDiedError, QueueFullError

RETRY_AFTER = {"Retry-After": "1"}
"""Seconds; the clients that read it wait longer with each try anyway."""


class ApiError(Exception):
    """A fault to report to the client.

    Args:
        status: HTTP status.
        message: what is wrong and what to do about it.
        param: the request's field at fault.
        code: for programs to tell faults apart.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._fields = {"param": param, "code": code}

    def body(self) -> dict[str, object]:
        """The reply's JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        message = printable(str(self))
        return {"error": {"message": message, "type": kind, **self._fields}}


def as_api_error(error: Exception) -> ApiError | None:
    """What the client is told about `error`; None if it is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers=RETRY_AFTER)
    if isinstance(error, DrainingError):
        return ApiError(503, str(error), code="draining", headers=RETRY_AFTER)
    if isinstance(error, EngineDiedError):
        return ApiError(500, str(error), code="engine_died")
    if isinstance(error, TimeoutError):
        return ApiError(504, "the request took longer than the server allows", code="timeout")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    return None
