"""What Prometheus scrapes from /metrics. A registry a server, so that several can live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The server's counters; their help texts say what they count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("tfgpt_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "tfgpt_request_seconds",
            "From a request's arrival to its last byte.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "tfgpt_first_text_seconds",
            "From a request's arrival to its first text.",
            buckets=SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("tfgpt_waiting_texts", "Texts that wait for their turn.", registry=registry)
        self.active = Gauge("tfgpt_active_texts", "Texts that are being written.", registry=registry)
        self.prompt = Counter("tfgpt_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.written = Counter("tfgpt_written_tokens", "Tokens written.", registry=registry)
        self.cancelled = Counter(
            "tfgpt_cancelled_requests", "Requests whose client left before the end.", registry=registry
        )
        self.calls = Histogram(
            "tfgpt_call_seconds", "Calls of the model that write.", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "tfgpt_call_texts", "Texts written together by a call.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )

    def chunk(self, rows: int, seconds: float) -> None:
        """Counts a call of the model."""
        self.calls.observe(seconds)
        self.batch.observe(rows)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)
