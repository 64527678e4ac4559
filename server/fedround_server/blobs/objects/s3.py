"""Buckets of S3, and of stores that are compatible with it, through obstore."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from fedround_server.blobs.objects.bucket import Bucket, BucketError, Entry
from fedround_server.blobs.objects.environment import (
    allows_http,
    check_variables,
    problem_of,
    read_credentials,
    read_file,
)
from fedround_server.blobs.objects.patient import SILENT_SECONDS

if TYPE_CHECKING:
    from obstore.store import MemoryStore, S3Store

log = logging.getLogger(__name__)
REQUEST_SECONDS = 30.0
"""How long a request may take, with its bytes."""
BEHIND = re.compile("status code: 416|StartTooLarge")
COMMIT = "commit"
PAGE = 1000
WRONG_CREDENTIALS = re.compile("SignatureDoesNotMatch|InvalidAccessKeyId|InvalidToken|ExpiredToken|AuthorizationHeader")
TOKEN_FILE = re.compile(r"Failed to read (?:EKS )?token file '([^'\n]+)'")
REASONS = (
    ("ConnectionRefused", "the connection is refused"),
    ("dns error", "its name is not known"),
    ("InvalidContentType|InvalidMessage", "it does not speak TLS: does the endpoint begin with http://?"),
    ("InvalidCertificate", "its certificate is not trusted: name its authority in AWS_CA_BUNDLE"),
    ("NetworkUnreachable|HostUnreachable", "it cannot be reached"),
    ("ConnectionReset|IncompleteMessage|UnexpectedEof", "it closes connections"),
)
"""What an error of a connection may contain, and what that means."""
CHECK = "check/"
CHECKS = 3
"""Attempts at the check: a single error is common."""
CHECK_SECONDS = 15.0
"""How long a request of the check may take, and after which time there is no other attempt."""


@dataclass(frozen=True)
class BucketUrl:
    """Where a bucket is: s3://BUCKET/PREFIX. Opens it, in any process, with credentials of the environment."""

    url: str
    request_seconds: float = REQUEST_SECONDS

    def __call__(self) -> Bucket:
        """Opens the bucket, without a request.

        Raises:
            RuntimeError: obstore is not installed, or an environment variable or a file cannot be used.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError as error:
            raise RuntimeError(
                f'objects: {error.name} is not installed: run pip install "fedround[s3]", or leave out --objects'
            ) from error
        check_variables()
        options: dict[str, Any] = {
            "allow_http": allows_http(),
            "timeout": timedelta(seconds=self.request_seconds),
        }
        if bundle := os.environ.get("AWS_CA_BUNDLE"):
            options["root_certificate"] = read_file("AWS_CA_BUNDLE", bundle)
        parts = urlsplit(self.url)
        try:
            store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options=options,  # type: ignore[arg-type]
                # `PatientBucket` repeats requests, so that an outage is known, and logged once.
                retry_config={"max_retries": 0},
                # One object at a time is removed, and not all stores know the request that removes many.
                disable_bulk_delete=True,
                **read_credentials(),
            )
        except (BaseError, ValueError) as error:
            # Its message may have the value.
            problem = problem_of(str(error))
        else:
            return ObstoreBucket(store)
        # Outside of the handler, so that the error of obstore is not its context.
        raise RuntimeError(f"objects: {problem}")

    def check(self) -> None:
        """Opens the bucket, and checks that it can be used as the server does.

        Raises:
            RuntimeError: It cannot be opened.
            BucketUnusable: It cannot be used.
        """
        check_bucket(replace(self, request_seconds=CHECK_SECONDS)())


class ObstoreBucket:
    """A store of obstore; `Bucket` describes the methods."""

    def __init__(self, store: "S3Store | MemoryStore") -> None:
        """Uses an open store."""
        import obstore

        self._store = store
        self._obstore = obstore

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        """Stores an object."""
        with _translated(reads=False):
            self._obstore.put(
                self._store,
                key,
                data,
                attributes={COMMIT: commit} if commit else None,
                mode="create" if create else "overwrite",
                use_multipart=False,
            )

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Returns a part of an object."""
        if end is not None and start >= end:
            return b""
        try:
            with _translated():
                options: Any = {"range": {"offset": start} if end is None else (start, end)} if start or end else None
                return bytes(self._obstore.get(self._store, key, options=options).bytes())
        except _Behind:
            return b""

    def head(self, key: str) -> Entry | None:
        """Returns what is known of an object."""
        try:
            return self._head(key, {"range": (0, 1)})
        except FileNotFoundError:
            return None
        except _Behind:
            # It is empty.
            return self._head(key, {})

    def _head(self, key: str, options: Any) -> Entry:
        # With a byte: the answer to HEAD does not tell a missing bucket from a missing object.
        with _translated():
            found = self._obstore.get(self._store, key, options=options)
            found.bytes()
            return Entry(key, found.meta["size"], found.meta["last_modified"], found.attributes.get(COMMIT, ""))

    def page(self, prefix: str, after: str) -> list[Entry]:
        """Returns a page of a listing."""
        with _translated():
            listing = self._obstore.list(self._store, prefix, offset=after or None, chunk_size=PAGE)
            found = next(iter(listing), [])
            return [Entry(one["path"], one["size"], one["last_modified"]) for one in found]

    def delete(self, key: str) -> None:
        """Removes an object."""
        with _translated(reads=False):
            self._obstore.delete(self._store, key)


class _Behind(Exception):
    """A range begins behind the end of an object."""


@contextmanager
def _translated(*, reads: bool = True) -> Iterator[None]:
    """Maps errors of obstore: their messages have what a store answers, which may contain parts of credentials."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    text: str | None = None
    try:
        yield
    except FileNotFoundError as error:
        if reads and "NoSuchBucket" not in str(error):
            raise FileNotFoundError("there is no such object") from None
        text = "<Code>NoSuchBucket</Code>"
    except (AlreadyExistsError, PreconditionError):
        raise FileExistsError("there is such an object") from None
    except BaseError as error:
        text = str(error)
        if BEHIND.search(text):
            raise _Behind from None
    if text is not None:
        # Outside of the handler, so that the error of obstore is not its context.
        raise _error(text)


def _error(text: str) -> BucketError:
    """Returns what an error of obstore is about, without any word that may be secret."""
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>(\w{1,60})</Code>|\(code: (\w{1,60})\)", text)
    word = "" if code is None else code[1] or code[2]
    number = "" if status is None else status[1]
    if word == "NoSuchBucket":
        return BucketError("the bucket does not exist", is_refusal=True)
    if file := TOKEN_FILE.search(text):
        return BucketError("the file with its token cannot be read", detail=file[1])
    if "169.254." in text or "/sts" in text or "WebIdentity" in text:
        return BucketError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", is_refusal=True)
    if WRONG_CREDENTIALS.match(word):
        return BucketError(f"the credentials are wrong ({word})", is_refusal=True)
    if word == "RequestTimeTooSkewed":
        return BucketError(f"the clock of this machine is wrong ({word})", is_refusal=True)
    if word == "AccessDenied" or number in ("401", "403"):
        return BucketError(f"the credentials have no permission ({word or number})", is_refusal=True)
    if answer := f"{number} {word}".strip():
        return BucketError(f"it answers {answer}")
    endpoint = _endpoint(text)
    if "TimedOut" in text or "timed out" in text:
        return BucketError("it does not answer in time", detail=endpoint)
    if "Connect" in text or "SendRequest" in text:
        reason = next((reason for pattern, reason in REASONS if re.search(pattern, text)), "")
        return BucketError("there is no connection to its endpoint", detail=": ".join(filter(None, (endpoint, reason))))
    return BucketError("the request failed", detail=endpoint)


def _endpoint(text: str) -> str:
    """Returns the host and the port of the request that an error of obstore is about."""
    url = re.search(r"Error performing \w+ (https?://\S+)", text)
    return "" if url is None else urlsplit(url[1]).netloc.rpartition("@")[2]


class BucketUnusable(Exception):
    """A bucket cannot be used as the server does; the message is for the operator."""

    def __init__(self, doing: str, error: BucketError) -> None:
        super().__init__(f"cannot {doing}: {error}")
        self.is_refusal = error.is_refusal


def check_bucket(bucket: Bucket) -> None:
    """Checks that a bucket can be used as the server does; logs that it waits for a store that does not answer.

    Raises:
        BucketUnusable: It cannot.
    """
    begun = time.monotonic()
    for attempt in range(1, CHECKS):
        try:
            _check_patiently(bucket)
        except BucketUnusable as error:
            if error.is_refusal or time.monotonic() - begun >= CHECK_SECONDS:
                raise
            time.sleep(attempt)
        else:
            return
    _check_patiently(bucket)


def _check_patiently(bucket: Bucket) -> None:
    """Checks a bucket, and logs that it waits if that takes long."""
    waiting = threading.Timer(SILENT_SECONDS, log.warning, ("waiting for the object store to answer",))
    waiting.daemon = True
    waiting.start()
    try:
        _check(bucket)
    finally:
        waiting.cancel()


def _check(bucket: Bucket) -> None:
    key = f"{CHECK}{uuid4()}"
    doing = ""
    try:
        doing = "write to it"
        bucket.put(key, b"fedround", create=True, commit="1")
        doing = "read from it"
        found = bucket.head(key)
        if found is None or found.commit != "1" or bucket.get(key) != b"fedround":
            raise BucketError("it does not return what was just written, with its metadata")
        doing = "list it"
        bucket.page(CHECK, "")
        doing = "write to it conditionally"
        try:
            bucket.put(key, b"fedround", create=True)
        except FileExistsError:
            pass
        else:
            raise BucketError("it ignores If-None-Match: use a store that supports conditional writes", is_refusal=True)
        doing = "delete from it"
        bucket.delete(key)
    except BucketError as error:
        raise BucketUnusable(doing, error) from None
