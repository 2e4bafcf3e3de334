"""The web server: OpenAI's API and the chat page in front of a served model. No Keras, no model code."""

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
from tfgpt.serving.api_errors import ApiError, add_error_handlers
from tfgpt.serving.backends import ModelInfo
from tfgpt.serving.batching import Batcher, BatcherStoppedError, QueueFullError, RequestHandle, SequenceState
from tfgpt.serving.client import Client, ServingError, text_ids
from tfgpt.serving.middleware import RequestMiddleware
from tfgpt.serving.openai_requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ErrorAnswer,
    GenerationRequest,
)
from tfgpt.serving.openai_responses import CompletionResponse, EventResponse, as_base64, unless_gone
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.serve_config import ServeConfig

WEB = Path(__file__).with_name("web")
# Calls that do not write (tokenize, embed) at the same time, beside the one that writes.
OTHER_CALLS = 2
# How long a backend may take to say that it is there, in seconds.
READY_SECONDS = 2.0

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 408, 413, 415, 422, 429, 502, 503, 504)
}

WHOLE_OR_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"content": {"application/json": {}}, "description": "Not ready"}}


class Server:
    """What the routes share.

    Args:
        client: the model.
        info: what is known of it.
        config: the limits.
    """

    def __init__(self, client: Client, info: ModelInfo, config: ServeConfig):
        self.client, self.info, self.config = client, info, config
        self.metrics = Metrics()
        self.batcher = Batcher(client, config.max_batch, config.max_queue, config.batch_wait_ms / 1000, self.metrics)
        self._calls = 0
        self._limiter: anyio.CapacityLimiter | None = None

    async def call(self, name: str, inputs: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Calls a signature that does not write.

        Raises:
            QueueFullError: too many such calls wait already.
        """
        self._limiter = self._limiter or anyio.CapacityLimiter(OTHER_CALLS)
        if self._calls >= self.config.max_queue:
            raise QueueFullError(self.batcher.retry_seconds(self._calls))
        self._calls += 1
        try:
            return await anyio.to_thread.run_sync(self.client.predict, name, inputs, limiter=self._limiter)
        finally:
            self._calls -= 1

    def check_model(self, name: str) -> None:
        """Refuses other models' names."""
        if name != self.info.name:
            message = f"there is no model {name!r} here; there is {self.info.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def check_length(self, tokens: int, param: str) -> None:
        """Refuses what does not fit into the model's context."""
        limit = self.info.context_length
        if limit and tokens > limit:
            message = f"{param} has {tokens} tokens; this model's context is {limit} tokens. Make it shorter."
            raise ApiError(400, message, param, "context_length_exceeded")

    async def tokenized(self, texts: Sequence[str], param: str) -> list[list[int]]:
        """The ids of plain texts, behind what the model's texts begin with, if anything."""
        prompts = text_ids(await self.call("tokenize", {"text": list(texts)}))
        self.check_length(max(map(len, prompts)), param)
        return prompts

    async def prompt_ids(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """The ids of a completion's prompts: all texts, or all ids already, which are taken as they are."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            return await self.tokenized(texts, "prompt")
        ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
        size = self.info.vocabulary_size
        # The model would refuse them, and with them what others have in the same call.
        if not size:
            raise ApiError(400, "the vocabulary is not known here; give text, or start serve with --model", "prompt")
        if max(map(max, ids)) >= size:
            raise ApiError(400, f"ids go from 0 to {size - 1}; {max(map(max, ids))} is none", "prompt", "invalid_value")
        self.check_length(max(map(len, ids)), "prompt")
        return ids

    async def conversation(self, body: ChatRequest) -> list[int]:
        """The ids of a conversation."""
        try:
            text = self.client.template.render([message.plain() for message in body.messages], True)
        except UserError as error:
            raise ApiError(400, str(error), "messages", "invalid_conversation") from None
        found = await self.call("tokenize_chat", {"conversation": [text]})
        ids = found["ids"][0][: found["num_tokens"][0]]
        self.check_length(len(ids), "messages")
        return ids

    def submit(
        self, request: Request, body: GenerationRequest, prompts: Sequence[list[int]], max_tokens: int | None
    ) -> CompletionResponse:
        """Puts a request's texts into the queue."""
        samples = body.n or 1
        if len(prompts) * samples > self.config.max_choices:
            message = f"{len(prompts) * samples} texts; this server writes at most {self.config.max_choices} a request"
            raise ApiError(400, message, "n", "too_many_choices")
        if max_tokens is not None and max_tokens > self.config.max_tokens_limit:
            message = f"{max_tokens} tokens; this server writes at most {self.config.max_tokens_limit} a text"
            raise ApiError(400, message, "max_tokens", "max_tokens_too_large")
        length = max_tokens or self.config.default_max_tokens
        seed = secrets.randbits(63) if body.seed is None else body.seed
        likely = body.wants_log_probabilities
        ticket = RequestHandle()
        rows: list[SequenceState] = []
        for prompt in prompts:
            for sample in range(samples):
                sampling = body.sampling(dict(self.info.defaults), seed, sample)
                rows.append(SequenceState(ticket, len(rows), prompt, length, sampling, body.stop_strings, likely))
        self.batcher.submit(rows)
        facts = request.scope["tfgpt.facts"]
        facts["stream"] = bool(body.stream)
        return CompletionResponse(
            ticket=ticket,
            chat=isinstance(body, ChatRequest),
            model=self.info.name,
            choices=len(rows),
            prompt_tokens=sum(map(len, prompts)),
            log_probabilities=likely,
            facts=facts,
            metrics=self.metrics,
            begun=request.scope["tfgpt.begun"],
        )

    async def respond(self, request: Request, body: GenerationRequest, answer: CompletionResponse) -> Response:
        """The answer, streamed or whole."""
        if body.stream:
            return EventResponse(answer, body.include_usage)
        return await unless_gone(request, answer)

    def description(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {
            "id": self.info.name,
            "object": "model",
            "created": self.info.created,
            "owned_by": "tfgpt",
            "context_length": self.info.context_length,
            "max_tokens_limit": self.config.max_tokens_limit,
            "defaults": {**self.info.defaults, "max_new_tokens": self.config.default_max_tokens},
        }


def api(server: Server) -> APIRouter:
    """OpenAI's routes."""
    router = APIRouter(prefix="/v1", responses=ERRORS)

    @router.post("/chat/completions", responses=WHOLE_OR_STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Response:
        server.check_model(body.model)
        prompt = await server.conversation(body)
        answer = server.submit(request, body, [prompt], body.max_completion_tokens or body.max_tokens)
        return await server.respond(request, body, answer)

    @router.post("/completions", responses=WHOLE_OR_STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        server.check_model(body.model)
        prompts = body.prompts
        if len(prompts) > server.config.max_choices:
            message = f"{len(prompts)} prompts; this server takes at most {server.config.max_choices} a request"
            raise ApiError(400, message, "prompt", "too_many_choices")
        answer = server.submit(request, body, await server.prompt_ids(prompts), body.max_tokens)
        return await server.respond(request, body, answer)

    @router.post("/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        server.check_model(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if len(texts) > server.config.max_queue:
            message = f"{len(texts)} texts; this server takes at most {server.config.max_queue} a request"
            raise ApiError(400, message, "input", "too_many_inputs")
        tokens = sum(map(len, await server.tokenized(texts, "input")))
        vectors: list[list[float]] = []
        for start in range(0, len(texts), server.config.max_batch):
            part = texts[start : start + server.config.max_batch]
            vectors += (await server.call("embed", {"text": part}))["embedding"]
        if body.dimensions not in (None, len(vectors[0])):
            message = f"{body.dimensions}; this model's vectors have {len(vectors[0])} numbers"
            raise ApiError(400, message, "dimensions", "invalid_value")
        server.metrics.prompt.inc(tokens)
        request.scope["tfgpt.facts"].update(prompt_tokens=tokens, inputs=len(texts))
        written = [as_base64(vector) if body.encoding_format == "base64" else vector for vector in vectors]
        data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(written)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": server.info.name, "usage": usage})

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [server.description()]})

    @router.get("/models/{model:path}")
    async def model(model: str) -> Response:
        server.check_model(model)
        return JSONResponse(server.description())

    return router


def operations(server: Server) -> APIRouter:
    """What operators and the browser ask for."""
    router = APIRouter()

    @router.get("/healthz", response_class=PlainTextResponse, responses=NOT_READY)
    async def healthz() -> Response:
        """The process lives, and the thread that writes."""
        if not server.batcher.alive:
            raise BatcherStoppedError
        return PlainTextResponse("ok\n")

    @router.get("/readyz", response_class=PlainTextResponse, responses=NOT_READY)
    async def readyz() -> Response:
        """The model answers, and the thread that writes lives."""
        if not server.batcher.alive:
            raise BatcherStoppedError
        ask = server.client.transport.predict
        try:
            await anyio.to_thread.run_sync(ask, "tokenize", {"text": ["ready?"]}, READY_SECONDS)
        except ServingError as error:
            return ApiError(503, f"the model does not answer: {error.code}", code="not_ready").response()
        return PlainTextResponse("ready\n")

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    return router


class PageFiles(StaticFiles):
    """The page's own files, with its headers."""

    def file_response(self, *arguments: Any, **keywords: Any) -> Response:
        """As Starlette's."""
        response = super().file_response(*arguments, **keywords)
        response.headers.update(PAGE_HEADERS)
        return response


def create_app(client: Client, info: ModelInfo, config: ServeConfig, keys: Sequence[str] = ()) -> FastAPI:
    """The web application.

    Args:
        client: the model.
        info: what is known of it.
        config: limits and origins.
        keys: the API keys; none: nobody is asked for one.
    """
    server = Server(client, info, config)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await anyio.to_thread.run_sync(server.batcher.stop)

    # No pages of documentation: they load scripts from elsewhere. The document itself is at /openapi.json.
    app = FastAPI(
        title="tfgpt",
        version=tfgpt.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(api(server))
    app.include_router(operations(server))
    app.mount("/web", PageFiles(directory=WEB), name="web")
    add_error_handlers(app)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schemas = described()["components"]["schemas"]
        for body in (ChatRequest, CompletionRequest, EmbeddingRequest):
            schemas[body.__name__]["properties"]["model"]["enum"] = [info.name]
        return described()  # FastAPI keeps the document and gives the same one out.

    app.openapi = openapi  # type: ignore[method-assign]
    # The last one added is the outermost.
    app.add_middleware(RequestMiddleware, config=config, keys=keys, metrics=server.metrics)
    if config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origin),
            allow_methods=["GET", "HEAD", "POST"],
            # OpenAI's client in a browser sends a dozen of its own. Nothing is granted by a header but the API key.
            allow_headers=["*"],
            allow_private_network="*" not in config.cors_origin,
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app
