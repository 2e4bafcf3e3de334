"""The web server: OpenAI's API and the chat page in front of a served model. Imports neither Keras nor model code."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles

import tfgpt
from tfgpt.common.errors import UserError
from tfgpt.serving.api_errors import ApiError, BatcherStoppedError, QueueFullError, add_error_handlers
from tfgpt.serving.backends import ModelInfo
from tfgpt.serving.batching import Batcher, RequestHandle
from tfgpt.serving.client import Client, prompt_ids
from tfgpt.serving.middleware import RequestMiddleware
from tfgpt.serving.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest, ErrorResponse
from tfgpt.serving.openai_responses import (
    CompletionResponse,
    EventResponse,
    encode_base64,
    respond_unless_disconnected,
)
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.sequence_state import SequenceState
from tfgpt.serving.serve_config import ServeConfig
from tfgpt.serving.tf_serving_transports import Outputs, ServingError

WEB = Path(__file__).with_name("web")
# Calls that do not generate (tokenize, embed) run parallel to the one that does, at most this many at a time.
MAX_OTHER_CALLS = 2
# Seconds within which a backend must respond to be ready.
READY_SECONDS = 2.0

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Responses = dict[int | str, dict[str, Any]]
"""Descriptions of responses for the OpenAPI document, by status."""

ERRORS: Responses = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 422, 429, 502, 503, 504)
}
JSON_OR_EVENTS: Responses = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
NOT_READY: Responses = {503: {"content": {"application/json": {}}, "description": "Not ready"}}


def create_app(client: Client, info: ModelInfo, config: ServeConfig, keys: Sequence[str] = ()) -> FastAPI:
    """Returns the web application; without API keys every client may use it."""
    server = Server(client, info, config)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await anyio.to_thread.run_sync(server.batcher.stop)

    # The documentation pages load scripts of other origins; the document itself is at /openapi.json.
    app = FastAPI(
        title="tfgpt",
        version=tfgpt.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(openai_routes(server))
    app.include_router(ops_routes(server))
    app.mount("/web", PageFiles(directory=WEB), name="web")
    add_error_handlers(app)
    document = app.openapi

    def openapi() -> dict[str, Any]:
        schemas = document()["components"]["schemas"]
        for body in (ChatRequest, CompletionRequest, EmbeddingRequest):
            schemas[body.__name__]["properties"]["model"]["enum"] = [info.name]
        return document()  # FastAPI caches the document.

    app.openapi = openapi  # type: ignore[method-assign]
    # The last middleware is the outermost.
    app.add_middleware(RequestMiddleware, config=config, keys=keys, metrics=server.metrics)
    if config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origin),
            allow_methods=["GET", "HEAD", "POST"],
            # OpenAI's client in a browser sends a dozen headers. Only the API key grants access.
            allow_headers=["*"],
            allow_private_network="*" not in config.cors_origin,
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app


class PageFiles(StaticFiles):
    """The static files of the chat page."""

    def file_response(self, *arguments: Any, **keywords: Any) -> Response:
        response = super().file_response(*arguments, **keywords)
        response.headers.update(PAGE_HEADERS)
        return response


class Server:
    """The state that the routes share."""

    def __init__(self, client: Client, info: ModelInfo, config: ServeConfig):
        self.client, self.info, self.config = client, info, config
        self.metrics = Metrics()
        self.batcher = Batcher(client, config.max_batch, config.max_queue, config.batch_wait_ms / 1000, self.metrics)
        self._calls = 0
        self._limiter: anyio.CapacityLimiter | None = None

    async def call(self, name: str, inputs: Mapping[str, list[Any]]) -> Outputs:
        """Calls a signature that does not generate; raises a QueueFullError if too many such calls wait."""
        self._limiter = self._limiter or anyio.CapacityLimiter(MAX_OTHER_CALLS)
        if self._calls >= self.config.max_queue:
            raise QueueFullError(self.batcher.retry_seconds(self._calls))
        self._calls += 1
        try:
            return await anyio.to_thread.run_sync(self.client.predict, name, inputs, limiter=self._limiter)
        finally:
            self._calls -= 1

    def check_model(self, name: str) -> None:
        if name != self.info.name:
            message = f"there is no model {name!r} here; there is {self.info.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def check_length(self, tokens: int, param: str) -> None:
        limit = self.info.context_length
        if limit and tokens > limit:
            message = f"{param} has {tokens} tokens; this model's context is {limit} tokens. Make it shorter."
            raise ApiError(400, message, param, "context_length_exceeded")

    async def tokenize(self, texts: Sequence[str], param: str) -> list[list[int]]:
        """Returns the ids of plain texts, after the token that texts begin with."""
        prompts = prompt_ids(await self.call("tokenize", {"text": list(texts)}))
        self.check_length(max(map(len, prompts)), param)
        return prompts

    async def tokenize_prompts(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Returns the ids of a completion's prompts, which are all texts or all ids."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            return await self.tokenize(texts, "prompt")
        ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
        size, largest = self.info.vocabulary_size, max(map(max, ids))
        # The model would refuse unknown ids together with the other texts of the same call.
        if not size:
            raise ApiError(400, "the vocabulary is not known here; give text, or start serve with --model", "prompt")
        if largest >= size:
            raise ApiError(400, f"ids go from 0 to {size - 1}, not to {largest}", "prompt", "invalid_value")
        self.check_length(max(map(len, ids)), "prompt")
        return ids

    async def tokenize_conversation(self, body: ChatRequest) -> list[int]:
        try:
            text = self.client.template.render(
                [message.to_dict() for message in body.messages], add_generation_prompt=True
            )
        except UserError as error:
            raise ApiError(400, str(error), "messages", "invalid_conversation") from None
        [ids] = (await self.call("tokenize_chat", {"conversation": [text]}))["ids"]
        self.check_length(len(ids), "messages")
        return ids

    async def respond(
        self, request: Request, body: ChatRequest | CompletionRequest, prompts: list[list[int]], max_tokens: int | None
    ) -> Response:
        samples = body.n or 1
        check_limit(len(prompts) * samples, self.config.max_choices, "texts", "n", "too_many_choices")
        check_limit(max_tokens or 0, self.config.max_tokens_limit, "tokens", "max_tokens", "max_tokens_too_large")
        length = max_tokens or self.config.default_max_tokens
        seed = secrets.randbits(63) if body.seed is None else body.seed
        log_probabilities = body.logprobs is not None and body.logprobs is not False  # 0 asks for them.
        handle = RequestHandle()
        sequences: list[SequenceState] = []
        for prompt in prompts:
            for sample in range(samples):
                sampling = body.sampling(dict(self.info.defaults), seed, sample)
                options = length, sampling, body.stop_strings, log_probabilities
                sequences.append(SequenceState(prompt, *options, index=len(sequences), handle=handle))
        self.batcher.submit(sequences)
        record = request.scope["tfgpt.access_record"]
        record["stream"] = bool(body.stream)
        response = CompletionResponse(
            handle=handle,
            chat=isinstance(body, ChatRequest),
            model=self.info.name,
            choices=len(sequences),
            prompt_tokens=sum(map(len, prompts)),
            log_probabilities=log_probabilities,
            record=record,
            metrics=self.metrics,
            start_time=request.scope["tfgpt.start_time"],
        )
        if body.stream:
            return EventResponse(response, body.include_usage)
        return await respond_unless_disconnected(request, response)

    def model_object(self) -> dict[str, Any]:
        return {
            "id": self.info.name,
            "object": "model",
            "created": self.info.created,
            "owned_by": "tfgpt",
            "context_length": self.info.context_length,
            "max_tokens_limit": self.config.max_tokens_limit,
            "defaults": {**self.info.defaults, "max_new_tokens": self.config.default_max_tokens},
        }


def check_limit(count: int, limit: int, unit: str, param: str, code: str) -> None:
    if count > limit:
        raise ApiError(400, f"{count} {unit}; the limit of this server is {limit}", param, code)


def openai_routes(server: Server) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=ERRORS)

    @router.post("/chat/completions", responses=JSON_OR_EVENTS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        server.check_model(body.model)
        prompt = await server.tokenize_conversation(body)
        return await server.respond(request, body, [prompt], body.max_completion_tokens or body.max_tokens)

    @router.post("/completions", responses=JSON_OR_EVENTS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        server.check_model(body.model)
        check_limit(len(body.prompts), server.config.max_choices, "prompts", "prompt", "too_many_choices")
        return await server.respond(request, body, await server.tokenize_prompts(body.prompts), body.max_tokens)

    @router.post("/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        server.check_model(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        check_limit(len(texts), server.config.max_queue, "texts", "input", "too_many_inputs")
        tokens = sum(map(len, await server.tokenize(texts, "input")))
        vectors: list[list[float]] = []
        for start in range(0, len(texts), server.config.max_batch):
            batch = texts[start : start + server.config.max_batch]
            vectors += (await server.call("embed", {"text": batch}))["embedding"]
        if body.dimensions not in (None, len(vectors[0])):
            message = f"{body.dimensions}; this model's vectors have {len(vectors[0])} numbers"
            raise ApiError(400, message, "dimensions", "invalid_value")
        server.metrics.prompt.inc(tokens)
        request.scope["tfgpt.access_record"].update(prompt_tokens=tokens, inputs=len(texts))
        encode = encode_base64 if body.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": server.info.name, "usage": usage})

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [server.model_object()]})

    @router.get("/models/{model:path}")
    async def model(model: str) -> Response:
        server.check_model(model)
        return JSONResponse(server.model_object())

    return router


def ops_routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", response_class=PlainTextResponse, responses=NOT_READY)
    async def healthz() -> Response:
        """The process and its batcher run."""
        if not server.batcher.thread.is_alive():
            raise BatcherStoppedError
        return PlainTextResponse("ok\n")

    @router.get("/readyz", response_class=PlainTextResponse, responses=NOT_READY)
    async def readyz() -> Response:
        """The model responds, and the batcher runs."""
        await healthz()
        predict = server.client.transport.predict
        try:
            await anyio.to_thread.run_sync(predict, "tokenize", {"text": [b"ready?"]}, READY_SECONDS)
        except ServingError as error:
            return ApiError(503, f"the model does not respond: {error.code}", code="not_ready").response()
        return PlainTextResponse("ready\n")

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    return router
