"""Signing in with a token, or with the link that the operator gets; signing out."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from hmac import compare_digest
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fedround_client.dashboard.sessions import SECRET_BYTES
from fedround_client.dashboard.sign_in_limit import SignInLimit
from fedround_client.dashboard.web import SIGN_IN, PageError, Web, first, http_status, inner_path, read_form
from fedround_client.errors import FedroundError, Unauthenticated

MAX_SIGN_IN_BYTES = 16_384
"""Bytes of the form of a visitor who is not signed in yet."""
LINK_SECONDS = 600.0
"""How long the link of the operator works, unless it was used."""


class OperatorLink:
    """The secret of a link that signs in one visitor, once, with the token that the operator gave to the dashboard."""

    def __init__(self, token: str, clock: Callable[[], float]) -> None:
        """Creates a link.

        Args:
            token: The token of the operator.
            clock: Returns the time in seconds.
        """
        self.secret = secrets.token_urlsafe(SECRET_BYTES)
        self._digest = _digest(self.secret)
        self._token = token
        self._clock = clock
        self._ends = clock() + LINK_SECONDS

    def take(self, secret: str) -> str:
        """Returns the token for the secret, the first time; empty afterwards, too late, or for another secret."""
        if not compare_digest(_digest(secret), self._digest):
            return ""
        token, self._token = self._token, ""
        return token if self._clock() < self._ends else ""


class SignIn:
    """The handlers of the pages where one signs in and out."""

    def __init__(self, web: Web, link: OperatorLink | None, clock: Callable[[], float]) -> None:
        """Creates the handlers.

        Args:
            web: What the pages share.
            link: The link of the operator; None if the operator gave no token.
            clock: Returns the time in seconds.
        """
        self._web = web
        self._link = link
        self._limit = SignInLimit(clock)
        self._form_cookie = f"fedround_form_{web.settings.port}"

    async def show(self, request: Request) -> Response:
        """Returns the form."""
        if self._web.session_of(request) is not None:
            return RedirectResponse("/", 303)
        return self._form(request)

    async def submit(self, request: Request) -> Response:
        """Signs in with the token of the form."""
        cookie = request.cookies.get(self._form_cookie, "")
        try:
            form = await read_form(request, self._web.sessions.form_key(cookie), MAX_SIGN_IN_BYTES)
        except PageError as error:
            return self._form(request, error.status, error.message)
        token, target = first(form, "token").strip(), inner_path(first(form, "next"))
        if not token:
            return self._form(request, 400, "Paste your token.")
        return await self._sign_in(request, token, RedirectResponse(target, 303))

    async def follow_link(self, request: Request) -> Response:
        """Signs in the operator, who follows the link that the command has printed."""
        token = "" if self._link is None else self._link.take(request.query_params.get("key", ""))
        if not token:
            return self._form(request, 403, "This link was used before, or has expired. Sign in with your token.")
        # Not a redirect: from a page of another site, the browser would not send the new cookie along.
        return await self._sign_in(request, token, HTMLResponse(self._web.text("signed_in.html")))

    async def sign_out(self, request: Request) -> Response:
        """Signs out."""
        session = self._web.session_of(request)
        if session is not None:
            try:
                await read_form(request, session.csrf)
            except PageError as error:
                return self._form(request, error.status, error.message)
            self._web.sessions.end(session)
        answer = RedirectResponse(SIGN_IN, 303)
        self._web.delete_cookie(answer)
        answer.headers["Clear-Site-Data"] = '"cache"'
        return answer

    async def _sign_in(self, request: Request, token: str, answer: Response) -> Response:
        address = request.client.host if request.client else ""
        if seconds := self._limit.wait(address):
            message = f"There were too many attempts from your address. Try again in {seconds} seconds."
            return self._form(request, 429, message, {"Retry-After": str(seconds)})
        self._limit.add(address)
        try:
            cookie = await run_in_threadpool(self._web.sessions.sign_in, token)
        except Unauthenticated:
            return self._form(request, 401, "The server does not know this token: it is wrong, expired or revoked.")
        except FedroundError as error:
            return self._form(request, http_status(error), error.message)
        self._limit.clear(address)
        # A visitor never keeps the cookie of before, and another session in this browser ends.
        if (old := self._web.session_of(request)) is not None:
            self._web.sessions.end(old)
        self._web.set_cookie(answer, request, cookie)
        answer.delete_cookie(self._form_cookie, path=SIGN_IN)
        return answer

    def _form(
        self, request: Request, status: int = 200, error: str = "", headers: dict[str, str] | None = None
    ) -> Response:
        # Another tab may have a form with the same cookie.
        cookie = request.cookies.get(self._form_cookie) or secrets.token_urlsafe(SECRET_BYTES)
        page = self._web.text(
            "sign_in.html",
            account=None,
            path=SIGN_IN,
            server=self._web.settings.server,
            error=error,
            csrf=self._web.sessions.form_key(cookie),
            next=inner_path(request.query_params.get("next", "/")),
        )
        answer = HTMLResponse(page, status, headers)
        secure = self._web.is_secure(request)
        answer.set_cookie(
            self._form_cookie, cookie, 3600, path=SIGN_IN, secure=secure, httponly=True, samesite="strict"
        )
        return answer


def link_path(link: OperatorLink) -> str:
    """Returns the path of the link of the operator."""
    return f"{SIGN_IN}/link?key={quote(link.secret)}"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
