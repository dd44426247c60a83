"""The routes: OpenAI's, and those for gaps, cancelling and watching.

In:  an engine and a maker of jobs.  Out: an ASGI app.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from unmask import __version__
from unmask.serving import replies, wire
from unmask.serving.engine import Closed, Engine, Full
from unmask.serving.jobs import Job
from unmask.serving.metrics import Metrics
from unmask.serving.replies import News
from unmask.serving.requests import Maker, Refused

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
WRONG: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.Error, "description": about}
    for status, about in {
        400: "Something in the question cannot be; the message says what.",
        401: "A key is needed.",
        403: "A page of another origin asked.",
        404: "There is no such model or request.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        421: "The server is not called by this name.",
        429: "Too much is asked; Retry-After says when to try again.",
        500: "The model failed.",
        503: "The server is stopping, or not ready yet.",
    }.items()
}


class Streamed(StreamingResponse):
    """A stream whose job is let go when its client has gone, also before the first word."""

    def __init__(self, content: AsyncIterator[bytes], engine: Engine, job: Job) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-request-id": job.id}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self.engine, self.job = engine, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self.job.finished:
                self.engine.cancel(self.job)


def refusal(error: Refused) -> JSONResponse:
    kind = KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    detail = wire.ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code)
    headers = {} if error.after is None else {"retry-after": str(int(error.after))}
    return JSONResponse(wire.Error(error=detail).model_dump(), error.status, headers)


def unreadable(error: RequestValidationError) -> Refused:
    """The first thing that is wrong with a body, in one line."""
    first = error.errors()[0]
    where = [part for part in first["loc"] if part != "body"]
    # of a field that may be of several kinds, pydantic names the kind, too
    kinds = {"str", "int", "float", "bool"}
    where = [p for i, p in enumerate(where) if not i or isinstance(p, int) or (p.isidentifier() and p not in kinds)]
    field = ".".join(map(str, where)) or None
    if first["type"] == "extra_forbidden":
        return Refused(400, f"{field} is not supported by this server; leave it out.", field, "unsupported_parameter")
    if first["type"] in ("json_invalid", "model_attributes_type", "missing") and field is None:
        return Refused(400, "the body must be a JSON object.", None, "invalid_json")
    if first["type"] == "json_invalid":
        return Refused(400, f"the body is not JSON (at character {field}).", None, "invalid_json")
    return Refused(400, f"{field or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}.", field)


def routes(engine: Engine, maker: Maker, metrics: Metrics, *, private: bool = False, lifespan: Any = None) -> FastAPI:
    """The app.

    Args:
        private: keys are needed, which the description says.
    """
    app = FastAPI(
        title="Unmask",
        version=__version__,
        description="OpenAI's API for masked diffusion language models, and what they can do beside.",
        responses=WRONG,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages of documentation load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.engine, app.state.maker = engine, maker

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        metrics.refused.labels(str(error.status)).inc()
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, unreadable(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        words = {400: "the body is not JSON.", 404: "there is no such path.", 405: "this path knows no such method."}
        answer = refusal(Refused(error.status_code, words.get(error.status_code, str(error.detail))))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal(Refused(500, "something went wrong in the server; its log says what."))

    async def answer(request: Request, body: wire.Asked, kind: str, make: Callable[[Any], Job]) -> Any:
        if body.model is not None and body.model != maker.name:
            raise Refused(
                404, f"there is no model {body.model!r}; this server has {maker.name!r}.", "model", "model_not_found"
            )
        job = await run_in_threadpool(make, body)
        watch = News()
        job.wake, job.owner = watch.wake, request.scope.get("unmask.key")
        try:
            engine.submit(job)
        except Full as error:
            raise Refused(429, "too many requests wait; try again later.", None, "queue_full", error.after) from None
        except Closed:
            raise Refused(503, "the server is stopping.", None, "stopping", 5) from None
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return Streamed(replies.stream(maker, job, watch, kind, with_usage=with_usage), engine, job)
        try:
            if not await finished(request, job, watch):
                return Response(status_code=499)
        finally:
            if not job.finished:
                engine.cancel(job)
        if any(choice.reason == "error" for choice in job.choices):
            raise Refused(500, replies.failure()["error"]["message"])
        found = replies.whole(maker, job, kind)
        # with log-probabilities it is megabytes, which are not written while all others wait
        return await run_in_threadpool(lambda: JSONResponse(found.model_dump(), headers={"x-request-id": job.id}))

    @app.post("/v1/chat/completions", response_model=wire.ChatAnswer, tags=["OpenAI"])
    async def chat_completions(body: wire.ChatRequest, request: Request) -> Any:
        """Go on with a conversation."""
        return await answer(request, body, "chat", maker.chat)

    @app.post("/v1/completions", response_model=wire.CompletionAnswer, tags=["OpenAI"])
    async def completions(body: wire.CompletionRequest, request: Request) -> Any:
        """Go on with a text; with a suffix, fill the gap before it."""
        return await answer(request, body, "completion", maker.completion)

    @app.post("/v1/infill", response_model=wire.InfillAnswer, tags=["Unmask"])
    async def infill(body: wire.InfillRequest, request: Request) -> Any:
        """Fill the gaps of a text, all at once."""
        return await answer(request, body, "infill", maker.infill)

    @app.get("/v1/models", response_model=wire.Models, tags=["OpenAI"])
    async def models() -> Any:
        """What is served."""
        return wire.Models(data=[model()])

    @app.get("/v1/models/{name:path}", response_model=wire.Model, tags=["OpenAI"])
    async def one_model(name: str) -> Any:
        """The served model, by name."""
        if name != maker.name:
            raise Refused(
                404, f"there is no model {name!r}; this server has {maker.name!r}.", "model", "model_not_found"
            )
        return model()

    def model() -> wire.Model:
        kind: Any = "autoregressive" if maker.causal else "masked"
        return wire.Model(id=maker.name, created=int(maker.created), kind=kind, max_length=maker.max_length)

    @app.delete("/v1/requests/{id}", response_model=wire.Cancelled, tags=["Unmask"])
    async def cancel(id: str, request: Request) -> Any:
        """Let go of a request; whoever waits for it gets what stands."""
        job = engine.jobs.get(id)
        if job is None or job.owner != request.scope.get("unmask.key"):
            raise Refused(404, "there is no such request, or it is done.", "id")
        engine.cancel(job)
        return wire.Cancelled(id=id, cancelled=True)

    @app.get("/health", response_model=wire.State, tags=["Watching"])
    async def health() -> Any:
        """Whether the engine lives."""
        if engine.broken or not engine.thread.is_alive():
            raise Refused(503, "the engine does not run.")
        return wire.State(status="ok", running=len(engine.running), waiting=len(engine.waiting))

    @app.get("/ready", response_model=wire.State, tags=["Watching"])
    async def ready() -> Any:
        """Whether requests are taken."""
        if not engine.ready:
            raise Refused(503, "no requests are taken.", None, None, 5)
        return wire.State(status="ready", running=len(engine.running), waiting=len(engine.waiting))

    @app.get("/metrics", tags=["Watching"], response_class=Response)
    async def watched() -> Response:
        """Counters in Prometheus' format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    describe(app, private)
    return app


def describe(app: FastAPI, private: bool) -> None:
    """The OpenAPI description, with what FastAPI's own leaves out or has otherwise."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        found = original()
        if private:
            schemes = found.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
        for path, operations in found["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # bodies that cannot be read get 400
                if private and path.startswith(("/v1/", "/metrics")):
                    operation["security"] = [{"key": []}]
                if path in ("/v1/chat/completions", "/v1/completions", "/v1/infill"):
                    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        return found

    app.openapi = openapi  # type: ignore[method-assign]


async def finished(request: Request, job: Job, watch: News) -> bool:
    """Until the job is done (true) or its client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def done() -> None:
        while not job.finished:
            await watch.wait()

    tasks = [asyncio.create_task(gone()), asyncio.create_task(done())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return job.finished
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
