"""What a fault is to a client."""

from __future__ import annotations

from openmimo.errors import UserError
from openmimo.serving.service import DrainingError, EngineDiedError, QueueFullError
from openmimo.web.errors import RETRY_AFTER, ApiError


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
