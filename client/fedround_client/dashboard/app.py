"""The dashboard as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from fedround_client.dashboard.charts import ChartMemory
from fedround_client.dashboard.feed import Feeds, Live, event
from fedround_client.dashboard.guard import Guard
from fedround_client.dashboard.pages import Pages, live_trainings
from fedround_client.dashboard.reader import Reader
from fedround_client.dashboard.sessions import Sessions
from fedround_client.dashboard.settings import Settings
from fedround_client.dashboard.sign_in import OperatorLink, SignIn
from fedround_client.dashboard.steering import ACTIONS, Steering
from fedround_client.dashboard.web import HERE, SIGN_IN, Visit, Web

SWEEP_SECONDS = 60.0
"""Between two searches for sessions that have expired."""


class Dashboard:
    """The dashboard.

    Attributes:
        app: The ASGI application.
        sessions: Who is signed in.
        feeds: The subscriptions to the server.
    """

    def __init__(
        self, settings: Settings, link: OperatorLink | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Creates the application.

        Args:
            settings: The settings.
            link: The link of the operator, if there is one.
            clock: Returns the time in seconds; never goes back.
        """
        self.sessions = Sessions(
            settings.open_client,
            idle_seconds=settings.idle_seconds,
            session_seconds=settings.session_seconds,
            clock=clock,
        )
        self.feeds = Feeds(settings.open_client)
        self._web = Web(settings, self.sessions)
        self._pages = Pages(self._web)
        self._charts_memory = ChartMemory()
        app = Starlette(routes=self._routes(SignIn(self._web, link, clock)), lifespan=self._lifespan)
        self.app: ASGIApp = Guard(app, settings.hosts)

    def _routes(self, sign_in: SignIn) -> list[Route | Mount]:
        web, pages, steering = self._web, self._pages, Steering(self._web)
        training = "/trainings/{training_id:uuid}"
        routes: list[Route | Mount] = [
            Mount("/static", _Static(directory=HERE / "static")),
            Route(SIGN_IN, sign_in.show),
            Route(SIGN_IN, sign_in.submit, methods=["POST"]),
            Route(f"{SIGN_IN}/link", sign_in.follow_link),
            Route("/sign-out", sign_in.sign_out, methods=["POST"]),
            Route("/", web.get(pages.trainings)),
            Route("/live", self._live_trainings),
            Route(training, web.get(pages.training)),
            Route(f"{training}/live", self._live_training),
            Route(f"{training}/charts", web.get(self._charts)),
            Route(f"{training}/participants", web.get(pages.participants)),
            Route(f"{training}/rounds", web.get(pages.rounds)),
            Route(f"{training}/rounds/{{round}}", web.get(pages.round)),
            Route(f"{training}/versions", web.get(pages.versions)),
            Route(f"{training}/versions/{{version}}", web.get(pages.version)),
            Route(f"{training}/configuration", web.get(pages.configuration)),
            Route("/users", web.get(pages.users)),
            Route("/users/{user_id:uuid}", web.get(steering.ask_labels)),
            Route("/users/{user_id:uuid}", web.post(steering.set_labels), methods=["POST"]),
            Route("/server", web.get(pages.server)),
        ]
        for action in ACTIONS.values():
            path = f"{training}/{action.name}"
            routes += [
                Route(path, web.get(partial(steering.ask, action))),
                Route(path, web.post(partial(steering.act, action)), methods=["POST"]),
            ]
        return [*routes, Route("/{path:path}", web.get(self._unknown))]

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(self._sweep(), name="sweep of sessions")
        try:
            yield
        finally:
            sweeping.cancel()
            self.sessions.end_all()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sessions.end_expired()

    def _unknown(self, visit: Visit) -> Response:
        return self._web.problem(visit, 404, "There is no such page.")

    def _charts(self, visit: Visit) -> Response:
        training = visit.read.training(visit.path("training_id"))
        return JSONResponse({"charts": self._charts_memory.charts(visit.read, training)})

    async def _live_trainings(self, request: Request) -> Response:
        return self._stream(request, "", live_trainings)

    async def _live_training(self, request: Request) -> Response:
        training_id = str(request.path_params["training_id"])

        def render(reader: Reader, num_events: int) -> Live:
            return self._pages.live_training(reader, training_id, num_events)

        return self._stream(request, training_id, render)

    def _stream(self, request: Request, training_id: str, render: Callable[[Reader, int], Live]) -> Response:
        """Returns the stream of the live parts of a page."""
        session = self._web.session_of(request, is_used=False)
        if session is None:
            # As a message: a page cannot read the status of an answer to its EventSource.
            return Response(event("signed-out"), media_type="text/event-stream")
        account = session.account
        messages = self.feeds.stream(
            account, training_id, partial(render, Reader(account)), partial(self.sessions.is_alive, session)
        )
        # For nginx: do not collect the stream before it is sent.
        return StreamingResponse(messages, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


class _Static(StaticFiles):
    """Files that browsers keep, and ask each time whether they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Returns a file."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
