"""Checks of single fields; each error names its field and says what would be right."""

import base64
import binascii
import json
import math
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message

from fedround_server.domain.errors import FieldInvalid, NumExamples, UpdateNotFinite
from fedround_server.domain.token import ID_DIGITS
from fedround_server.domain.training import MAX_NUM_EXAMPLES

DEFAULT_PAGE = 50
MAX_PAGE = 1000
MAX_CLIENTS = 10_000
MAX_PAGE_TOKEN = 4096
"""Characters: the longest name takes some 3,200."""
MAX_METRICS = 100
MAX_METRIC_NAME = 100
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,100}")
TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,49}")
TOKEN_ID = re.compile(rf"[0-9a-fA-F]{{{ID_DIGITS}}}")
MAX_CERTIFICATE_NAMES = 20
CERTIFICATE_NAME = re.compile(r"[!-~]{1,250}")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# PostgreSQL keeps no NUL, and UTF-8 has no halves of surrogate pairs.
UNKEEPABLE = re.compile(r"[\x00\ud800-\udfff]")


def parse_id(field: str, value: str) -> str:
    """Reads a required UUID, in lower case.

    Raises:
        FieldInvalid: It is missing or malformed.
    """
    if not value:
        raise FieldInvalid(field, "is required: a UUID like 123e4567-e89b-12d3-a456-426614174000")
    if not UUID.fullmatch(value):
        raise FieldInvalid(field, f"{value[:80]!r} is not a UUID like 123e4567-e89b-12d3-a456-426614174000")
    return str(uuid.UUID(value))


def an_optional_id(field: str, value: str) -> str | None:
    """Reads a UUID that may be empty."""
    return parse_id(field, value) if value else None


def ids(field: str, values: Iterable[str]) -> list[str]:
    """Reads a set of UUIDs: repeating one is fine.

    Raises:
        FieldInvalid: One is malformed, or there are too many.
    """
    # Counted before they are read: a message has room for so many that reading them would hold everybody up.
    found = set(values)
    if len(found) > MAX_CLIENTS:
        raise FieldInvalid(field, f"names {len(found)} users; at most {MAX_CLIENTS} a call")
    return sorted({parse_id(field, value) for value in found})


def parse_ids(field: str, values: Iterable[str]) -> list[str]:
    """Reads a set of UUIDs that must not be empty."""
    found = ids(field, values)
    if not found:
        raise FieldInvalid(field, "is empty: name at least one user")
    return found


def parse_text(field: str, value: str, longest: int, *, required: bool = False) -> str:
    """Reads words for people.

    Raises:
        FieldInvalid: They are missing or too long.
    """
    if required and not value.strip():
        raise FieldInvalid(field, f"is required: 1 to {longest} characters")
    if len(value) > longest:
        raise FieldInvalid(field, f"has {len(value)} characters; at most {longest} are kept")
    if UNKEEPABLE.search(value):
        raise FieldInvalid(field, "contains NUL, or half of a surrogate pair")
    return value


def a_version(version: int | None, tag: str) -> tuple[int | None, str]:
    """Reads which version of a model is meant: by number, by tag, or with neither the latest.

    Raises:
        FieldInvalid: By both, or the tag is malformed.
    """
    if tag and version is not None:
        raise FieldInvalid("tag", "and version both name a version: choose one")
    return version, a_tag("tag", tag) if tag else ""


def an_architecture(field: str, value: str) -> str:
    """Reads the name of an architecture, which may be empty.

    Raises:
        FieldInvalid: It is malformed.
    """
    if value and not ARCHITECTURE.fullmatch(value):
        raise FieldInvalid(field, f"{value[:80]!r} is no name: letters, digits, dots, dashes, underscores; at most 100")
    return value


def a_tag(field: str, value: str) -> str:
    """Reads a tag of a version.

    Raises:
        FieldInvalid: It is malformed.
    """
    if not TAG.fullmatch(value):
        raise FieldInvalid(
            field, f"{value[:80]!r} is no tag: 1 to 50 lower-case letters, digits, dots, dashes, underscores"
        )
    return value


def a_digest(field: str, value: str) -> str | None:
    """Reads a SHA-256 in hex that may be empty, in lower case."""
    if value and not SHA256.fullmatch(value):
        raise FieldInvalid(field, "is not a SHA-256: 64 hexadecimal digits")
    return value.lower() or None


def a_token_id(field: str, value: str) -> str:
    """Reads what a token is called by.

    Raises:
        FieldInvalid: It is missing or malformed.
    """
    if not TOKEN_ID.fullmatch(value):
        # Not repeated: somebody may have put the token itself here.
        raise FieldInvalid(field, f"is no id of a token: {ID_DIGITS} hexadecimal digits, as GetUser shows them")
    return value.lower()


def certificate_names(field: str, values: Iterable[str]) -> list[str]:
    """Reads a set of names in client certificates.

    Raises:
        FieldInvalid: There are too many, or one is none.
    """
    found = sorted(set(values))
    if len(found) > MAX_CERTIFICATE_NAMES:
        raise FieldInvalid(field, f"has {len(found)} entries; at most {MAX_CERTIFICATE_NAMES}")
    for value in found:
        if not CERTIFICATE_NAME.fullmatch(value):
            raise FieldInvalid(field, "takes DNS names, URIs and e-mail addresses: 1 to 250 visible ASCII characters")
    return found


def an_optional_duration(field: str, message: Message, longest: timedelta, prefix: str = "") -> timedelta | None:
    """Reads a duration of a message that may be unset.

    Args:
        field: Its name in the message.
        message: The message.
        longest: How long it may be.
        prefix: Where the message is in the request.

    Raises:
        FieldInvalid: It is not positive, or too long.
    """
    if not message.HasField(field):
        return None
    try:
        duration: timedelta = getattr(message, field).ToTimedelta()
    except (ValueError, OverflowError):
        duration = timedelta(0)
    if not timedelta(0) < duration <= longest:
        raise FieldInvalid(f"{prefix}{field}", f"must be positive, and at most {longest.days} days")
    return duration


def a_page_size(value: int) -> int:
    """Reads how many entries a page has: 0 is the default, too many are cut, negative is refused."""
    if value < 0:
        raise FieldInvalid("page_size", f"is {value}; must not be negative")
    return min(value or DEFAULT_PAGE, MAX_PAGE)


def page_token(*position: str | int) -> str:
    """Makes an opaque token of where the next page starts."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def a_page_token(value: str, *kinds: type[str] | type[int]) -> tuple[Any, ...] | None:
    """Reads a page token; None for the first page.

    Raises:
        FieldInvalid: It is none of this listing's.
    """
    if not value:
        return None
    try:
        if len(value) > MAX_PAGE_TOKEN:
            raise ValueError("too long")
        position = json.loads(base64.b64decode(value.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        position = None
    fits = isinstance(position, list) and len(position) == len(kinds)
    if not fits or not all(_is_part(part, kind) for part, kind in zip(position, kinds, strict=True)):
        raise FieldInvalid("page_token", "is not a next_page_token of this listing: leave it empty for the first page")
    return tuple(position)


def a_num_examples(value: int) -> int:
    """Reads an example count.

    Raises:
        NumExamples: It is out of bounds.
    """
    if not 1 <= value <= MAX_NUM_EXAMPLES:
        raise NumExamples(value, MAX_NUM_EXAMPLES)
    return value


def some_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Reads metrics.

    Raises:
        FieldInvalid: There are too many, or a name is too long.
        UpdateNotFinite: A value is NaN or Inf.
    """
    if len(values) > MAX_METRICS:
        raise FieldInvalid("metrics", f"has {len(values)} entries; at most {MAX_METRICS}")
    for name, value in values.items():
        parse_text("metrics", name, MAX_METRIC_NAME, required=True)
        if not math.isfinite(value):
            raise UpdateNotFinite(f"metrics[{name!r}] is {value}: report finite numbers, or leave it out")
    return dict(values)


def metric_names(values: Collection[str]) -> tuple[str, ...]:
    """Reads the names that evaluation reports must carry.

    Raises:
        FieldInvalid: There are too many, a name is too long, or one stands there twice.
    """
    if len(values) > MAX_METRICS:
        raise FieldInvalid("spec.metric_names", f"has {len(values)} entries; at most {MAX_METRICS}")
    names = [parse_text("spec.metric_names", value, MAX_METRIC_NAME, required=True) for value in values]
    if len(set(names)) != len(names):
        raise FieldInvalid("spec.metric_names", "contains a name twice")
    return tuple(names)


def position(time: datetime, id_: str) -> str:
    """Makes a page token of the last entry of a page that is ordered by time and id."""
    return page_token(round(time.timestamp() * 1_000_000), id_)


def a_position(value: str) -> tuple[datetime, str] | None:
    """Reads a token that `position` made."""
    found = a_page_token(value, int, str)
    if found is None:
        return None
    try:
        return datetime.fromtimestamp(found[0] / 1_000_000, UTC), parse_id("page_token", found[1])
    except (ValueError, OverflowError, OSError) as error:
        raise FieldInvalid("page_token", "is not a next_page_token of this listing") from error


def _is_part(part: Any, kind: type[str] | type[int]) -> bool:
    if type(part) is not kind:
        return False
    return 0 <= part < 1 << 62 if isinstance(part, int) else not UNKEEPABLE.search(part)
