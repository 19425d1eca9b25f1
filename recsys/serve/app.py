"""HTTP around a `Ranker`: routes, errors, access log, and the server process.

Errors have one shape, FastAPI's own: `{"detail": [{"loc": ["body", FIELD], "msg": ..., "type": ...}]}`. Bodies are
never logged.
"""

import html
import json
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

from recsys import __version__
from recsys.bundle import Bundle
from recsys.errors import RecsysError, SpecError, UnknownItemError, UnknownUserError
from recsys.profiles.versions import ProfileStore
from recsys.serve.rank import Problem, Problems, Ranker, RankRequest, RankResponse

if TYPE_CHECKING:
    from fastapi import FastAPI

MAX_BODY = 1_000_000
"""Bytes of a request's body: a full history of the longest ids fits."""

_Message = MutableMapping[str, Any]
_Asgi = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]

ACCESS = logging.getLogger("recsys.serve")


def create_app(bundle: Bundle, store: ProfileStore | None = None) -> "FastAPI":
    """The service over a bundle; it has answered one request already when this returns.

    store : where what users changed in their profiles is looked up, at each request

    `POST /v1/rank`, `/health/live`, `/health/ready`, `/openapi.json`, and `/docs`, a page that needs no CDN.
    """
    return app_of(Ranker.of(bundle, store))


def app_of(ranker: Ranker) -> "FastAPI":
    """The HTTP side alone, over any ranker."""
    from fastapi import Body, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse

    app = FastAPI(
        title="recsys",
        summary="Ranked, explained items for a user or a history.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY,
    )
    app.add_middleware(_AccessLog)
    examples = ranker.examples()
    page = docs_page(examples[0])

    def problems(status: int, *found: Problem) -> JSONResponse:
        return JSONResponse(Problems(detail=list(found)).model_dump(), status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own handler echoes the input, which can be large, private, or not JSON at all (NaN).
        found = [Problem(loc=list(one["loc"]), msg=one["msg"], type=one["type"]) for one in error.errors()]
        for problem in found:
            if problem.loc == ["body"] and problem.type == "model_attributes_type":
                problem.msg = "send a JSON object with the header Content-Type: application/json"
        return problems(422, *found)

    @app.exception_handler(RecsysError)
    async def failed(request: Request, error: RecsysError) -> JSONResponse:
        # No path of this machine goes out; a short one ("." or "bundle") may be found in any message.
        message = str(error).replace(f"bundle {ranker.bundle.path}", f"bundle {ranker.bundle.name}")
        match error:
            case UnknownUserError():
                return problems(404, Problem(loc=["body", "user_id"], msg=message, type="unknown_user"))
            case UnknownItemError():
                return problems(422, Problem(loc=["body", "history"], msg=message, type="unknown_item"))
            case SpecError():
                return problems(422, Problem(loc=["body", "k"], msg=message, type="k_too_large"))
        ACCESS.error("%s: %s", type(error).__name__, error)
        message = "the recommender failed; the server's log says why"
        return problems(503, Problem(loc=["server"], msg=message, type=type(error).__name__))

    reasons = {404: "No such user", 422: "A field is wrong", 503: "A model failed"}
    failures: dict[int | str, Any] = {
        status: {"model": Problems, "description": reason} for status, reason in reasons.items()
    }

    # Not async: it runs in the thread pool, so that the health checks answer while a model computes.
    @app.post("/v1/rank", responses=failures)
    def rank(request: Annotated[RankRequest, Body(examples=examples)]) -> RankResponse:
        """The top k items for a user of the log, or for a history, with reasons."""
        return ranker.rank(request)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """The bundle is loaded and has answered once; before that, whoever asks waits."""
        return {"status": "ready", "bundle": ranker.bundle.name}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page)

    return app


def docs_page(example: dict[str, Any]) -> str:
    """The packaged page with a request that the bundle answers, safe in HTML and in the shell's single quotes."""
    page = resources.files("recsys.serve").joinpath("docs.html").read_text(encoding="utf-8")
    return page.replace("EXAMPLE", html.escape(json.dumps(example).replace("'", "\\u0027"), quote=False))


class _AccessLog:
    """One JSON line per request: method, path, status, milliseconds. No bodies, no query strings, no addresses."""

    def __init__(self, app: _Asgi) -> None:
        self.app = app

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def note(message: _Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            ms = round((time.perf_counter() - started) * 1000, 1)
            ACCESS.info(json.dumps({"method": scope["method"], "path": scope["path"], "status": status, "ms": ms}))


@contextmanager
def claim_port(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the address: a taken port shows before minutes of loading, not after.

    It listens from the start, because two sockets that are only bound can share an address. Whoever connects while
    the bundle loads waits for the first answer. `port` 0 takes any free one.

    Errors: `SpecError` when the address is taken, unknown or not allowed.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise SpecError(f"--port {port}: must be from 0 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise SpecError(f"--host {host}: {error.strerror or error}") from error
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen()
        except OSError as error:
            raise SpecError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from error
        yield sock


def run(app: "FastAPI", sock: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; running requests are finished first. The access log goes to stderr."""
    import uvicorn

    lines = {"class": "logging.StreamHandler", "formatter": "plain"}
    logs = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(message)s"}},
        "handlers": {"stderr": lines},
        "loggers": {
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            ACCESS.name: {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        },
    }
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=logs, access_log=False, server_header=False, timeout_graceful_shutdown=30)
    )
    # After its orderly end uvicorn repeats the signal that asked for it; that must not look like a crash.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
