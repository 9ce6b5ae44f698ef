"""Errors as an OpenAI client reads them: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...ir.errors import MonographError, RuntimeInputError

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 404: "not_found_error"}
"""The `type` of an error by its status; others are of the request (4xx) or of the server (5xx)."""

CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}


class HttpError(MonographError):
    """A request that is answered with a status other than 200.

    status, param (the field at fault), code, headers (added to the answer).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code or CODES.get(status, "error")
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.what, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The answer as bytes."""
        return json.dumps(self.content()).encode()


def http_error(error: Exception) -> HttpError:
    """What a client is told of an error: all of what its own input caused, nothing of the inside of the server."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RuntimeInputError):
        hint = f" ({error.hint})" if error.hint else ""
        return HttpError(400, f"{error.what}{hint}")
    return HttpError(500, "the server could not answer this request; its log says why")
