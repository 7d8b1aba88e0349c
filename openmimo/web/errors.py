"""Faults as OpenAI's API reports them; the judge's service reports its own alike."""

from __future__ import annotations

from collections.abc import Mapping

from openmimo.errors import printable

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
