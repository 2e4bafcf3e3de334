"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tfgpt.common.errors import TfgptError
from tfgpt.serving.batching import BatcherStoppedError, QueueFullError, ShutdownError
from tfgpt.serving.client import ServingError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# What Pydantic calls the branches of a union.
BRANCHES = ("str", "int", "float", "bool")
# When a client may try again after the backend was away or the server stopped, in seconds.
AWAY_SECONDS = 2

log = logging.getLogger("tfgpt.serving")


class ApiError(Exception):
    """An answer that is not 2xx.

    Args:
        status: the HTTP status.
        message: one line for the caller.
        param: the field that is wrong.
        code: what programs look at.
        headers: sent along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def content(self) -> dict[str, Any]:
        """The answer's body."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.content(), self.status, self.headers)


def as_api_error(error: Exception) -> ApiError:
    """What a caller is told of an error; what the caller cannot mend is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.seconds)})
    if isinstance(error, ShutdownError):
        return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": str(AWAY_SECONDS)})
    if isinstance(error, BatcherStoppedError):
        log.error("%s", error)
        return ApiError(503, str(error), code="not_ready")
    if isinstance(error, ServingError):
        log.error("%s", error)
        if error.code == "DEADLINE_EXCEEDED":
            return ApiError(504, "the model did not answer in time", code="timeout")
        if error.retryable:
            away = {"Retry-After": str(AWAY_SECONDS)}
            return ApiError(503, "the model's backend is away or full", code="backend_unavailable", headers=away)
        return ApiError(502, "the model's backend refused the request", code="backend_error")
    if isinstance(error, TfgptError):
        return ApiError(400, str(error))
    log.error("internal error", exc_info=error)
    return ApiError(500, "internal error", code="internal_error")


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body; within a union, what the branch says that got furthest."""
    errors = error.errors()
    first = max(
        (found for found in errors if found["loc"][:2] == errors[0]["loc"][:2]), key=lambda one: len(one["loc"])
    )
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    place = [str(part) for part in first["loc"] if part != "body"]
    # Inside a union Pydantic adds the branch's name; what clients know is the field and the item's number.
    name = ".".join(part for part in place if part.isdigit() or (part.isidentifier() and part not in BRANCHES))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name}: this server has no such parameter", name, "unknown_parameter")
    if first["type"] == "too_long" and not first["ctx"]["max_length"]:
        return ApiError(400, f"{name}: this server has none; only an empty one is taken", name, "unknown_parameter")
    return ApiError(400, f"{name or 'body'}: {first['msg']}", name or None, "invalid_value")


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of the app one of ours."""

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return of_validation(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = "the body is not JSON in UTF-8" if error.status_code == 400 else str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def other(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, TfgptError):
        app.add_exception_handler(kind, other)
