"""How a request becomes a page: sessions, forms, errors and templates."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote, urlsplit

import grpc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from fedround_client.dashboard.reader import Reader
from fedround_client.dashboard.sessions import Account, Session, Sessions
from fedround_client.dashboard.settings import Settings
from fedround_client.dashboard.words import FILTERS, safe
from fedround_client.errors import FedroundError, Unauthenticated

HERE = Path(__file__).parent
MAX_FORM_BYTES = 1 << 20
"""Bytes of a form: 10,000 ids of clients fit."""
MAX_FORM_FIELDS = 10_100
SIGN_IN = "/sign-in"
CSRF_FIELD = "csrf"

_HTTP_STATUS = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}
_TITLES = {
    400: "That is not valid",
    403: "Not allowed",
    404: "Not found",
    409: "Not possible now",
    413: "Too large",
    429: "Too many requests",
    501: "The server does not offer this",
    503: "No connection to the server",
    504: "The server did not answer in time",
}
# Where a sign-in may lead: to a page of the dashboard.
_PATH = re.compile(r"/[A-Za-z0-9/_-]*")
_NUMBER = re.compile(r"[0-9]{1,10}")

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Form: TypeAlias = Mapping[str, list[str]]


class PageError(Exception):
    """A request cannot be answered.

    Attributes:
        status: The HTTP status.
        message: What is wrong, for people.
    """

    def __init__(self, status: int, message: str) -> None:
        """Creates the error."""
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Visit:
    """A request of a visitor who is signed in."""

    request: Request
    session: Session
    read: Reader

    @property
    def account(self) -> Account:
        """The account of the visitor."""
        return self.session.account

    def path(self, name: str) -> str:
        """Returns a part of the path by name."""
        return str(self.request.path_params[name])

    def number(self, name: str) -> int:
        """Returns a part of the path that is a number.

        Raises:
            PageError: It is none, or larger than any that the server has.
        """
        number = parse_number(self.path(name))
        if number is None:
            raise PageError(404, "There is no such page.")
        return number

    def query(self, name: str) -> str:
        """Returns a parameter of the query; empty if it is not there."""
        return self.request.query_params.get(name, "")


class Web:
    """What the pages share."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        """Loads the templates.

        Args:
            settings: The settings of the dashboard.
            sessions: Who is signed in.
        """
        self.settings = settings
        self.sessions = sessions
        self._cookie = f"fedround_{settings.port}"
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=safe,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)

    def text(self, template: str, **values: Any) -> str:
        """Returns a template as HTML."""
        return self._templates.get_template(template).render(values)

    def page(self, visit: Visit, template: str, status: int = 200, **values: Any) -> Response:
        """Returns a page for a visitor who is signed in."""
        shared = {"account": visit.account, "csrf": visit.session.csrf, "path": visit.request.url.path}
        return HTMLResponse(self.text(template, server=self.settings.server, **shared, **values), status)

    def problem(self, visit: Visit, status: int, message: str, reason: str = "") -> Response:
        """Returns a page about an error."""
        title = _TITLES.get(status, "Something went wrong")
        can_pass = status in (429, 502, 503, 504)
        return self.page(visit, "problem.html", status, title=title, message=message, reason=reason, can_pass=can_pass)

    def get(self, handler: Callable[[Visit], Response]) -> Endpoint:
        """Returns the endpoint of a page; the handler runs in a thread."""

        async def endpoint(request: Request) -> Response:
            session = self.session_of(request)
            if session is None:
                return self.to_sign_in(request)
            return await self._run(Visit(request, session, Reader(session.account)), handler)

        return endpoint

    def post(self, handler: Callable[[Visit, Form], Response]) -> Endpoint:
        """Returns the endpoint of a form; the handler runs in a thread."""

        async def endpoint(request: Request) -> Response:
            session = self.session_of(request)
            if session is None:
                return self.to_sign_in(request)
            visit = Visit(request, session, Reader(session.account))
            try:
                form = await read_form(request, session.csrf)
            except PageError as error:
                return self.problem(visit, error.status, error.message)
            return await self._run(visit, lambda visit: handler(visit, form))

        return endpoint

    async def _run(self, visit: Visit, handler: Callable[[Visit], Response]) -> Response:
        try:
            return await run_in_threadpool(handler, visit)
        except Unauthenticated:
            self.sessions.end_account(visit.account)
            return self.to_sign_in(visit.request)
        except PageError as error:
            return self.problem(visit, error.status, error.message)
        except FedroundError as error:
            return self.problem(visit, http_status(error), error.message, error.reason)
        except ValueError:
            if not visit.session.ended:
                raise
            # Signing out in another tab has closed the channel of the account.
            return self.to_sign_in(visit.request)

    def session_of(self, request: Request, *, is_used: bool = True) -> Session | None:
        """Returns the session of a request; None if its visitor is not signed in."""
        # What htmx asks for when something changed is no use by the visitor.
        is_used = is_used and "x-live" not in request.headers
        return self.sessions.find(self.cookie_of(request), is_used=is_used)

    def cookie_of(self, request: Request) -> str:
        """Returns the cookie of a request; empty if it has none."""
        # Over HTTPS, only this host can have set it, and no subdomain.
        return request.cookies.get(f"__Host-{self._cookie}") or request.cookies.get(self._cookie, "")

    def set_cookie(self, response: Response, request: Request, cookie: str) -> None:
        """Sets the cookie of a session. The browser sends it to this host only, and not from other pages."""
        is_secure = self.is_secure(request)
        name = f"__Host-{self._cookie}" if is_secure else self._cookie
        response.set_cookie(name, cookie, path="/", secure=is_secure, httponly=True, samesite="strict")

    def delete_cookie(self, response: Response) -> None:
        """Deletes the cookie of a session."""
        response.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict")
        response.delete_cookie(f"__Host-{self._cookie}", path="/", secure=True, httponly=True, samesite="strict")

    def is_secure(self, request: Request) -> bool:
        """Returns whether the browser speaks HTTPS, with the dashboard or with a proxy in front of it."""
        return request.url.scheme == "https" or urlsplit(request.headers.get("origin", "")).scheme == "https"

    def to_sign_in(self, request: Request) -> Response:
        """Sends a visitor to the page where one signs in, and from there back."""
        target = f"{SIGN_IN}?next={quote(inner_path(request.url.path))}" if request.method == "GET" else SIGN_IN
        if "hx-request" in request.headers:
            return PlainTextResponse("", 200, {"HX-Redirect": SIGN_IN})
        return RedirectResponse(target, 303)


async def read_form(request: Request, csrf: str, max_bytes: int = MAX_FORM_BYTES) -> Form:
    """Returns the fields of a form.

    Args:
        request: The request.
        csrf: What the form must contain to be one of ours.
        max_bytes: How large it may be.

    Raises:
        PageError: It is none, or is too large.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise PageError(400, "The request is no form.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise PageError(413, f"This form may have {max_bytes:,} bytes.")
        form = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except (ValueError, ClientDisconnect) as error:
        raise PageError(400, "The form is damaged.") from error
    if not compare_digest(first(form, CSRF_FIELD).encode(), csrf.encode()):
        raise PageError(403, "The form has expired. Open the page again, and repeat what you did.")
    return form


def first(form: Form, name: str) -> str:
    """Returns a field of a form; empty if it is not there."""
    return form.get(name, [""])[0]


def parse_number(text: str) -> int | None:
    """Returns a number from 0 that fits the messages of the server (uint32); None for any other text."""
    number = int(text) if _NUMBER.fullmatch(text) else 1 << 32
    return number if number < 1 << 32 else None


def inner_path(path: str) -> str:
    """Returns a path of the dashboard; that of the first page if it is none."""
    return path if _PATH.fullmatch(path) and not path.startswith("//") else "/"


def http_status(error: FedroundError) -> int:
    """Returns the HTTP status for an error of the server."""
    return _HTTP_STATUS.get(error.code, 502)
