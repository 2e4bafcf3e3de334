"""Load on a running `python -m tfgpt.serve`: 1, 8 and 32 clients at once, each streaming chats one after the other.

    python -m tfgpt.serve --model=models/chat --access_log=false &
    python scripts/bench_serve.py --url=http://127.0.0.1:8000 --clients=1,8,32 --seconds=20

The clients are the official `openai` package's asynchronous one. Prints for each number of clients: answers, errors
(429 counted apart: a full queue says so on purpose), tokens a second over all clients, the time to the first token and
of a whole answer (50th and 99th percentile, seconds), and the server's resident memory where it runs on this machine;
at the end one line of JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
from absl import app, flags

URL = flags.DEFINE_string("url", "http://127.0.0.1:8000", "The server.")
CLIENTS = flags.DEFINE_list("clients", ["1", "8", "32"], "How many clients at once, one level after the other.")
SECONDS = flags.DEFINE_float("seconds", 20.0, "How long each level lasts; answers begun by then are finished.")
TOKENS = flags.DEFINE_integer("tokens", 64, "The most tokens of an answer.")
PROMPT = flags.DEFINE_string("prompt", "What do you like to do on a rainy day?", "What every client says.")
SERVER_PID = flags.DEFINE_integer("server_pid", 0, "The server's process, to watch its memory; 0: not watched.")
KEY = flags.DEFINE_string("api_key", "none", "The API key.")


@dataclasses.dataclass
class Level:
    """The measurements of one level of load, in seconds."""

    first: list[float] = dataclasses.field(default_factory=list)
    whole: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    refused: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)


async def chat(client: openai.AsyncOpenAI, model: str, seed: int, level: Level) -> None:
    """One streamed answer."""
    started = time.perf_counter()
    first = None
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": PROMPT.value}],
            max_tokens=TOKENS.value,
            seed=seed,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if first is None and chunk.choices and chunk.choices[0].delta.content:
                first = time.perf_counter() - started
            if chunk.usage:
                level.tokens += chunk.usage.completion_tokens
    except openai.RateLimitError:
        level.refused += 1
        await asyncio.sleep(0.2)
        return
    except (openai.OpenAIError, OSError) as error:
        level.errors.append(f"{type(error).__name__}: {error}"[:200])
        return
    level.whole.append(time.perf_counter() - started)
    # An answer may be empty: then its first news is its end.
    level.first.append(level.whole[-1] if first is None else first)


async def load(clients: int, model: str) -> tuple[Level, float]:
    """Keeps `clients` answers under way; returns what was seen and how long it took."""
    level, started = Level(), time.perf_counter()

    async def one(number: int) -> None:
        # A separate client has separate connections.
        async with openai.AsyncOpenAI(
            base_url=f"{URL.value.rstrip('/')}/v1", api_key=KEY.value, max_retries=0, timeout=300
        ) as client:
            asked = 0
            while time.perf_counter() - started < SECONDS.value:
                await chat(client, model, 1000 * number + asked, level)
                asked += 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    return level, time.perf_counter() - started


def resident_mebibytes(process: int) -> float | None:
    """Resident memory of a process of this machine (Linux)."""
    path = Path(f"/proc/{process}/status")
    if not process or not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def main(_: list[str]) -> None:
    """Runs every level and prints."""
    logging.getLogger("httpx").setLevel("WARNING")  # A line a request otherwise.
    with openai.OpenAI(base_url=f"{URL.value.rstrip('/')}/v1", api_key=KEY.value, timeout=30) as client:
        model = client.models.list().data[0].id
    results: list[dict[str, Any]] = []
    asyncio.run(load(1, model))  # Warms up.
    header = (
        "clients",
        "answers",
        "429",
        "errors",
        "tok/s",
        "first p50",
        "first p99",
        "answer p50",
        "answer p99",
        "MiB",
    )
    print("".join(f"{name:>12s}" for name in header))
    for text in CLIENTS.value:
        level, seconds = asyncio.run(load(int(text), model))
        first = np.percentile(level.first or [np.nan], [50, 99])
        whole = np.percentile(level.whole or [np.nan], [50, 99])
        memory = resident_mebibytes(SERVER_PID.value)
        row = (int(text), len(level.whole), level.refused, len(level.errors), level.tokens / seconds, *first, *whole)
        cells = [f"{value:12d}" if isinstance(value, int) else f"{value:12.2f}" for value in row]
        print("".join(cells) + (f"{memory:12.0f}" if memory else f"{'-':>12s}"), flush=True)
        for error in sorted(set(level.errors))[:3]:
            print(f"  {error}")
        results.append(
            {
                "clients": int(text),
                "answers": len(level.whole),
                "refused": level.refused,
                "errors": len(level.errors),
                "tokens_per_second": level.tokens / seconds,
                "first_token_seconds": {"p50": float(first[0]), "p99": float(first[1])},
                "answer_seconds": {"p50": float(whole[0]), "p99": float(whole[1])},
                "resident_mebibytes": memory,
            }
        )
    print(json.dumps({"bench": "serve", "tokens": TOKENS.value, "levels": results}))


if __name__ == "__main__":
    app.run(main)
