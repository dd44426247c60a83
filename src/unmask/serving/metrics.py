"""What can be watched of a server, in Prometheus' words.

In:  what the engine and the routes tell.  Out: `/metrics`. Each server has a registry of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from unmask.serving.engine import Engine
    from unmask.serving.jobs import Job

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = here = CollectorRegistry()
        how: dict[str, Any] = {"namespace": "unmask", "registry": here}
        self.running = Gauge("rows_running", "Rows that are stepped.", **how)
        self.waiting = Gauge("rows_waiting", "Rows that wait for room.", **how)
        self.places = Gauge("canvas_places", "Places of the canvases that are stepped.", **how)
        self.cache = Gauge("cache_bytes", "Bytes that hold keys and values.", **how)
        self.steps = Histogram("step_seconds", "Seconds of a step of all rows.", buckets=SECONDS, **how)
        self.together = Histogram("step_rows", "Rows of a step.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), **how)
        self.written = Counter("tokens_written", "Tokens written, ends and all that follows them included.", **how)
        self.prompt = Counter("prompt_tokens", "Tokens of prompts.", **how)
        self.passes = Counter("forward_passes", "Forward passes, counted for each row.", **how)
        self.computed = Counter("places_computed", "Places that forward passes computed.", **how)
        self.jobs = Counter("requests", "Requests that are done, by how they ended.", ["reason"], **how)
        self.refused = Counter("refused", "Requests that were not taken, by status.", ["status"], **how)
        self.seconds = Histogram("request_seconds", "Seconds from question to end.", buckets=SECONDS, **how)
        self.until_first = Histogram("first_token_seconds", "Seconds until text stands.", buckets=SECONDS, **how)

    def watch(self, engine: Engine) -> None:
        """Read the gauges off an engine whenever they are asked for."""
        self.running.set_function(lambda: len(engine.running))
        self.waiting.set_function(lambda: len(engine.waiting))
        self.places.set_function(lambda: sum(choice.places for choice in list(engine.running)))
        self.cache.set_function(lambda: engine.kept_bytes)

    def stepped(self, seconds: float, rows: int, written: int) -> None:
        self.steps.observe(seconds)
        self.together.observe(rows)
        self.written.inc(written)

    def first(self, seconds: float) -> None:
        self.until_first.observe(seconds)

    def finished(self, job: Job) -> None:
        """A request is done, or was let go."""
        self.jobs.labels(job.choices[0].reason or "error").inc()
        self.prompt.inc(job.prompt)
        self.passes.inc(job.passes)
        self.computed.inc(sum(choice.row.computed for choice in job.choices))
        self.seconds.observe((job.done or job.asked) - job.asked)

    def text(self) -> bytes:
        return generate_latest(self.registry)
