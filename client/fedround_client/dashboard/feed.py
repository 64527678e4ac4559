"""Live parts of pages: one subscription and one rendering for all visitors with the same token, however many tabs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from starlette.concurrency import run_in_threadpool

from fedround_client.client import Client
from fedround_client.dashboard.sessions import Account
from fedround_client.errors import FedroundError, NotFound, Unauthenticated
from fedround_client.logs import get_logger

logger = get_logger(__name__)

LEAST_SECONDS = 0.1
"""Between two renderings at least."""
MOST_SECONDS = 5.0
"""Between two renderings at most: bytes of uploads, for example, change without an event."""
REST_FACTOR = 2.0
"""A rendering is followed by a rest of so many times its own duration, so that large rounds do not keep a core busy."""
MAX_FEEDS = 200
MAX_STREAMS = 1000
MAX_ACCOUNT_FEEDS = 50
"""Subscriptions for one token."""
MAX_ACCOUNT_STREAMS = 200
"""Open pages of one token, so that one visitor leaves room for the others."""


@dataclass(frozen=True)
class Live:
    """What the live parts of a page show.

    Attributes:
        fragments: HTML by the id of the element that it replaces.
        stamps: By name, a text that changes when a part changes that pages ask for by themselves.
        says: What a screen reader announces when it changes.
        is_over: Whether nothing changes any more.
    """

    fragments: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    is_over: bool = False


class Feed:
    """The live state of a training, or of all trainings, for one token.

    It subscribes in a thread of its own over a channel of its own, since a call of another
    thread ends only with its channel. Every event has the state rendered anew; events in between are taken together.
    """

    def __init__(
        self,
        open_client: Callable[[str], Client],
        account: Account,
        training_id: str,
        render: Callable[[int], Live],
    ) -> None:
        """Starts the feed; must be called in the event loop.

        Args:
            open_client: Opens a client with a token.
            account: Whose trainings it shows.
            training_id: UUID of the training; empty for all of the account's.
            render: Called in a thread with the number of events so far; returns the state.
        """
        self._loop = asyncio.get_running_loop()
        self._account = account
        self._render = render
        self._changed = asyncio.Event()
        self._changed.set()
        self._rendered = asyncio.Condition()
        self._num_events = 0
        self._client = open_client(account.token)
        self._training_id = training_id
        self.live: Live | None = None
        self.error: FedroundError | None = None
        self.version = 0
        self.num_streams = 0
        self._task = asyncio.create_task(self._run(), name=f"feed of {training_id or 'all trainings'}")
        self._task.add_done_callback(self._note_end)
        self.has_failed = False
        threading.Thread(target=self._subscribe, name="fedround-dashboard-feed", daemon=True).start()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Has the streams end after a defect, so that pages connect anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The live part of a page failed.", exc_info=error)
            self.has_failed = True

    def close(self) -> None:
        """Ends the subscription and the rendering."""
        self._task.cancel()
        self._client.close()

    async def next(self, version: int, seconds: float) -> int:
        """Waits until a newer version than the given one is rendered, at most for some seconds; returns its number."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._rendered:
                await self._rendered.wait_for(lambda: self.version > version)
        return self.version

    def _subscribe(self) -> None:
        """Has the state rendered after each event, until the feed is closed or the training has ended."""
        try:
            # A lost connection is no end: it goes on by itself.
            for _ in self._client.watch(self._training_id or None):
                self._notify()
            self._notify()
        except (FedroundError, ValueError) as error:  # ValueError: the channel was closed between two attempts
            logger.debug("The subscription of the dashboard ended: %s", error)
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._notify()

    def _notify(self) -> None:
        self._num_events += 1
        self._loop.call_soon_threadsafe(self._changed.set)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOST_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            begin = self._loop.time()
            error: FedroundError | None = None
            live = self.live
            try:
                live = await run_in_threadpool(self._render, self._num_events)
            except FedroundError as failure:
                error = failure
            except ValueError:
                if self._account.num_sessions:
                    raise
                return  # the last visitor has signed out, which closes the channel of the account
            if live != self.live or str(error) != str(self.error):
                async with self._rendered:
                    self.live, self.error = live, error
                    self.version += 1
                    self._rendered.notify_all()
            if live is not None and live.is_over:
                return
            await asyncio.sleep(max(LEAST_SECONDS, REST_FACTOR * (self._loop.time() - begin)))


class Feeds:
    """The feeds that are in use."""

    def __init__(self, open_client: Callable[[str], Client]) -> None:
        """Creates an empty set of feeds.

        Args:
            open_client: Opens a client with a token.
        """
        self._open_client = open_client
        self._feeds: dict[tuple[Account, str], Feed] = {}
        self.num_streams = 0

    @property
    def num_feeds(self) -> int:
        """How many subscriptions there are."""
        return len(self._feeds)

    def _is_full(self, account: Account, training_id: str) -> bool:
        """Returns whether there is no room for another stream."""
        own = [feed for (owner, _), feed in self._feeds.items() if owner is account]
        if self.num_streams >= MAX_STREAMS or sum(feed.num_streams for feed in own) >= MAX_ACCOUNT_STREAMS:
            return True
        is_new = (account, training_id) not in self._feeds
        return is_new and (len(self._feeds) >= MAX_FEEDS or len(own) >= MAX_ACCOUNT_FEEDS)

    async def stream(
        self,
        account: Account,
        training_id: str,
        render: Callable[[int], Live],
        is_alive: Callable[[], bool],
    ) -> AsyncIterator[bytes]:
        """Yields server-sent events: each has what changed since the one before, as JSON; or that there is no room.

        Args:
            account: Whose trainings are shown.
            training_id: UUID of the training; empty for all of the account's.
            render: As in Feed.
            is_alive: Returns whether the visitor is still signed in.
        """
        # Not before the first message is asked for: of many requests at once, each counts those before it.
        if self._is_full(account, training_id):
            yield event("busy")
            return
        key = (account, training_id)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(self._open_client, account, training_id, render)
        feed.num_streams += 1
        self.num_streams += 1
        try:
            async for message in _messages(feed, is_alive):
                yield message
        finally:
            feed.num_streams -= 1
            self.num_streams -= 1
            if not feed.num_streams:
                del self._feeds[key]
                feed.close()


async def _messages(feed: Feed, is_alive: Callable[[], bool]) -> AsyncIterator[bytes]:
    sent: dict[str, str] = {}
    version = 0
    yield b"retry: 1000\n\n"
    while True:
        newest = await feed.next(version, MOST_SECONDS)
        if not is_alive() or isinstance(feed.error, Unauthenticated):
            yield event("signed-out")
            return
        if feed.has_failed:
            return
        if newest == version:
            yield b": still here\n\n"
            continue
        version = newest
        live = feed.live or Live()
        gone = isinstance(feed.error, NotFound)
        changed = {name: html for name, html in live.fragments.items() if sent.get(name) != html}
        sent.update(changed)
        problem = "" if feed.error is None else feed.error.message
        body = {"fragments": changed, "stamps": live.stamps, "says": live.says, "problem": problem, "gone": gone}
        yield event("live", body)
        if live.is_over or gone:
            yield event("over")
            return


def event(name: str, body: Mapping[str, object] = MappingProxyType({})) -> bytes:
    """Returns a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(dict(body))}\n\n".encode()
