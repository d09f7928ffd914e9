"""How the server says no: one sentence, in the form in which OpenAI's clients expect errors."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class RefusedError(Exception):
    """A request that is not answered: ``status`` is HTTP's, ``param`` the field that is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """``{"error": {…}}``, as OpenAI has it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer; where waiting helps, it says how long."""
        headers = {"retry-after": "1"} if self.status in (429, 503) else {}
        return JSONResponse(self.body(), self.status, headers)


def no_such_route(request: Request, error: Exception) -> Response:
    """The answer where nothing answers."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail.lower()}; /openapi.json says what there is"
    return RefusedError(error.status_code, said).response()
