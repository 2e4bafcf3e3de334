"""The Prometheus counters at /metrics. Each server has its own registry, so that several fit in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters and histograms of `/metrics`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("tfgpt_requests", "Answered requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "tfgpt_request_seconds", "Time of a request.", ["route"], buckets=SECONDS, registry=registry
        )
        self.first = Histogram(
            "tfgpt_first_text_seconds", "Time from a request to its first text.", buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge("tfgpt_waiting_texts", "Texts in the queue.", registry=registry)
        self.active = Gauge("tfgpt_active_texts", "Texts that are being generated.", registry=registry)
        self.prompt = Counter("tfgpt_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.generated = Counter("tfgpt_written_tokens", "Generated tokens.", registry=registry)
        self.cancelled = Counter(
            "tfgpt_cancelled_requests", "Requests whose client disconnected before the end.", registry=registry
        )
        self.calls = Histogram(
            "tfgpt_call_seconds", "Time of a call that generates.", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "tfgpt_call_texts", "Texts of a call that generates.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
