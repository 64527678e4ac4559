"""Buckets of S3, and of stores that are compatible with it, through obstore."""

import configparser
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from fedround_server.blobs.objects.bucket import Bucket, BucketError, Entry

if TYPE_CHECKING:
    from obstore.store import MemoryStore, S3Store

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
REQUEST_SECONDS = 30.0
"""How long a request may take, with its bytes."""
COMMIT = "commit"
WRONG_CREDENTIALS = re.compile("SignatureDoesNotMatch|InvalidAccessKeyId|InvalidToken|ExpiredToken|AuthorizationHeader")
CHECK = "check/"


@dataclass(frozen=True)
class BucketUrl:
    """Where a bucket is: s3://BUCKET/PREFIX. Opens it, in any process, with credentials of the environment."""

    url: str

    def __post_init__(self) -> None:
        """Checks the URL.

        Raises:
            ValueError: It is not of that form.
        """
        parts = urlsplit(self.url)
        if parts.scheme != "s3" or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("must be s3://BUCKET or s3://BUCKET/PREFIX; credentials come from the environment")

    def __str__(self) -> str:
        return self.url

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
        endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
        options: dict[str, Any] = {
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        }
        if bundle := os.environ.get("AWS_CA_BUNDLE"):
            options["root_certificate"] = _read(bundle)
        parts = urlsplit(self.url)
        try:
            store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options=options,  # type: ignore[arg-type]
                # `PatientBucket` repeats requests, so that an outage is known, and logged once.
                retry_config={"max_retries": 0},
                **_shared_credentials(),
            )
        except (BaseError, ValueError):
            # Its message may have the value.
            raise RuntimeError("objects: an AWS_* environment variable cannot be used") from None
        return ObstoreBucket(store)


def _shared_credentials() -> dict[str, Any]:
    """Returns the credentials of the file that AWS_SHARED_CREDENTIALS_FILE names, unless variables have some.

    Raises:
        RuntimeError: They cannot be read.
    """
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if not path or os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    parser = configparser.RawConfigParser()
    profile = os.environ.get("AWS_PROFILE", "default")
    try:
        parser.read_string(_read(path).decode())
        found = parser[profile]
        token = {"session_token": found["aws_session_token"]} if "aws_session_token" in found else {}
        return {
            "access_key_id": found["aws_access_key_id"],
            "secret_access_key": found["aws_secret_access_key"],
            **token,
        }
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise RuntimeError(
            f"objects: {path} has no aws_access_key_id and aws_secret_access_key in the profile {profile}"
        ) from None


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RuntimeError(f"objects: {path} cannot be read: {error.strerror}") from error


class ObstoreBucket:
    """A store of obstore; `Bucket` describes the methods."""

    def __init__(self, store: "S3Store | MemoryStore") -> None:
        """Uses an open store."""
        import obstore

        self._store = store
        self._obstore = obstore

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        """Stores an object."""
        with _translated():
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
            with _translated():
                # The answer to HEAD does not tell a missing bucket from a missing object.
                found = self._obstore.get(self._store, key, options={"range": (0, 1)})
                found.bytes()
                return Entry(key, found.meta["size"], found.meta["last_modified"], found.attributes.get(COMMIT, ""))
        except FileNotFoundError:
            return None

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yields objects."""
        with _translated():
            for page in self._obstore.list(self._store, prefix):
                for one in page:
                    yield Entry(one["path"], one["size"], one["last_modified"])

    def delete(self, key: str) -> None:
        """Removes an object."""
        with _translated():
            self._obstore.delete(self._store, key)


class _Behind(Exception):
    """A range begins behind the end of an object."""


@contextmanager
def _translated() -> Iterator[None]:
    """Maps errors of obstore: their messages have what a store answers, which may contain parts of credentials."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    problem: str | None = None
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise FileNotFoundError("there is no such object") from None
        problem = "the bucket does not exist"
    except (AlreadyExistsError, PreconditionError):
        raise FileExistsError("there is such an object") from None
    except BaseError as error:
        text = str(error)
        if "416 " in text or "StartTooLarge" in text:
            raise _Behind from None
        problem = _problem(text)
    if problem is not None:
        raise BucketError(problem)


def _problem(text: str) -> str:
    """Returns what an error of obstore is about, without any word that may be secret."""
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>(\w{1,60})</Code>|\(code: (\w{1,60})\)", text)
    word = "" if code is None else code[1] or code[2]
    if word == "NoSuchBucket":
        return "the bucket does not exist"
    if "169.254." in text or "/sts" in text or "WebIdentity" in text:
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if WRONG_CREDENTIALS.match(word):
        return f"the credentials are wrong ({word})"
    if word == "AccessDenied" or (status is not None and status[1] in ("401", "403")):
        return f"the credentials have no permission ({word or status[1]})"  # type: ignore[index]
    if status is not None:
        return f"it answers {status[1]}{' ' + word if word else ''}"
    if word:
        return f"it answers {word}"
    if "TimedOut" in text or "timed out" in text:
        return "it does not answer in time"
    if "Connect" in text:
        return "there is no connection to its endpoint"
    return "the request failed"


def check_bucket(bucket: Bucket) -> None:
    """Checks that a bucket can be used as the server does.

    Raises:
        RuntimeError: It cannot; the message is for the operator.
    """
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
        list(bucket.entries(CHECK))
        doing = "write to it conditionally"
        try:
            bucket.put(key, b"fedround", create=True)
        except FileExistsError:
            pass
        else:
            raise BucketError("it ignores If-None-Match, by which no object is replaced: use a store that supports it")
        doing = "delete from it"
        bucket.delete(key)
    except BucketError as error:
        raise RuntimeError(f"cannot {doing}: {error.problem}") from None
