"""Errors in OpenAI's format: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tfgpt.common.errors import TfgptError
from tfgpt.serving.tf_serving_transports import ServingError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# Pydantic's names of the branches of a union.
BRANCHES = ("str", "int", "float", "bool")
# A client may retry after this many seconds when the backend is away or the server is stopping.
RETRY_HEADER = {"Retry-After": "2"}

logger = logging.getLogger("tfgpt.serving")


class ApiError(Exception):
    """A response that is not 2xx; `param` names the wrong field, and `code` is for programs."""

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
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


class QueueFullError(ApiError):
    """The queue has no room for more requests; there may be room after `seconds`."""

    def __init__(self, seconds: int):
        message = f"the server is busy; try again in {seconds} s"
        super().__init__(429, message, code="queue_full", headers={"Retry-After": str(seconds)})


class ShutdownError(ApiError):
    """503: the server stops."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping", code="shutting_down", headers=RETRY_HEADER)


class BatcherStoppedError(ApiError):
    """The batcher's thread has ended; only a restart of the server starts it again."""

    def __init__(self) -> None:
        super().__init__(503, "the batcher has stopped; restart the server", code="not_ready")


def to_api_error(error: Exception) -> ApiError:
    """Returns the response for an error, and logs an error that the caller cannot correct."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ServingError):
        logger.error("%s", error)
        if error.code == "DEADLINE_EXCEEDED":
            return ApiError(504, "the model did not respond in time", code="timeout")
        if error.retryable:
            return ApiError(503, "the backend is away or full", code="backend_unavailable", headers=RETRY_HEADER)
        return ApiError(502, "the backend refused the request", code="backend_error")
    if isinstance(error, TfgptError):
        return ApiError(400, str(error))
    logger.error("internal error", exc_info=error)
    return ApiError(500, "internal error", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error response of the app follow OpenAI's format."""

    async def handle_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = error.errors()
        # In a union the branch that matches the longest path has the problem.
        alternatives = [found for found in errors if found["loc"][:2] == errors[0]["loc"][:2]]
        first = max(alternatives, key=lambda found: len(found["loc"]))
        path = [str(part) for part in first["loc"] if part != "body"]
        # Pydantic adds the branch's name; clients know the field and the number of the item.
        name = ".".join(part for part in path if part.isdigit() or (part.isidentifier() and part not in BRANCHES))
        if first["type"] == "json_invalid":
            problem = ApiError(400, "the body is not JSON", code="invalid_json")
        elif first["type"] == "extra_forbidden":
            problem = ApiError(400, f"{name}: this server has no such parameter", name, "unknown_parameter")
        elif first["type"] == "too_long" and not first["ctx"]["max_length"]:
            problem = ApiError(400, f"{name}: this server supports only an empty one", name, "unknown_parameter")
        else:
            problem = ApiError(400, f"{name or 'body'}: {first['msg']}", name or None, "invalid_value")
        return problem.response()

    async def handle_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = "the body is not JSON in UTF-8" if error.status_code == 400 else str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def handle_other(request: Request, error: Exception) -> JSONResponse:
        return to_api_error(error).response()

    app.add_exception_handler(RequestValidationError, handle_validation)
    app.add_exception_handler(HTTPException, handle_http)
    for kind in (ApiError, TfgptError):
        app.add_exception_handler(kind, handle_other)
