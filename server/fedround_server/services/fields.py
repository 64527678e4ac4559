"""Parses the fields of requests.

Each function raises `FieldInvalid` for a value that is missing, malformed or too long, and for too many values. The
error names the field and says what would be valid.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from google.protobuf.message import Message

from fedround.v1 import round_pb2
from fedround_server.domain.errors import FieldInvalid, NumExamples
from fedround_server.domain.failure import ABSENT, REASON
from fedround_server.domain.token import ID_DIGITS
from fedround_server.domain.training import MAX_NUM_EXAMPLES
from fedround_server.domain.update import MetricValue

MAX_CLIENTS = 10_000
MAX_METRICS = 1000
MAX_METRIC_NAMES = 100
MAX_TEXT_METRIC = 1000
MAX_LIST_METRIC = 1000
MAX_KEPT_BYTES = 64 << 10
"""Bytes of a submission's text metrics in UTF-8, and of its lists with 8 bytes a number."""
MAX_METRIC_NAME = 100
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,100}")
TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,49}")
TOKEN_ID = re.compile(rf"[0-9a-fA-F]{{{ID_DIGITS}}}")
MAX_CERTIFICATE_NAMES = 20
MAX_LABELS = 50
MAX_ATTRIBUTES = 20
MAX_TEXT_NAME = 100
"""Characters of the name of a label or an attribute."""
MAX_TEXT_VALUE = 200
"""Characters of the value of a label or an attribute."""
CERTIFICATE_NAME = re.compile(r"[!-~]{1,250}")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# PostgreSQL cannot store NUL, and UTF-8 has no halves of surrogate pairs.
UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def parse_id(field: str, value: str) -> str:
    """Parses a required UUID and returns it in lower case."""
    if not value:
        raise FieldInvalid(field, "is required: a UUID like 123e4567-e89b-12d3-a456-426614174000")
    if not UUID.fullmatch(value):
        raise FieldInvalid(field, f"{value[:80]!r} is not a UUID like 123e4567-e89b-12d3-a456-426614174000")
    return value.lower()


def parse_optional_id(field: str, value: str) -> str | None:
    """Parses a UUID; returns None for an empty string."""
    return parse_id(field, value) if value else None


def parse_optional_ids(field: str, values: Iterable[str]) -> list[str]:
    """Parses a set of UUIDs and returns it sorted; repetitions are allowed."""
    # Counted before they are parsed: a message has room for so many that parsing them would block the event loop.
    found = set(values)
    if len(found) > MAX_CLIENTS:
        raise FieldInvalid(field, f"names {len(found)} users; at most {MAX_CLIENTS} a call")
    return sorted({parse_id(field, value) for value in found})


def parse_ids(field: str, values: Iterable[str]) -> list[str]:
    """Parses a set of UUIDs that must not be empty, like `parse_optional_ids`."""
    found = parse_optional_ids(field, values)
    if not found:
        raise FieldInvalid(field, "is empty: name at least one user")
    return found


def parse_text(field: str, value: str, longest: int, *, required: bool = False) -> str:
    """Checks that a text is not too long and has only characters that can be stored, and returns it."""
    if required and not value.strip():
        raise FieldInvalid(field, f"is required: 1 to {longest} characters")
    if len(value) > longest:
        raise FieldInvalid(field, f"has {len(value)} characters; at most {longest} are allowed")
    if UNSTORABLE.search(value):
        raise FieldInvalid(field, "contains NUL, or half of a surrogate pair")
    return value


def parse_version(version: int | None, tag: str) -> tuple[int | None, str]:
    """Parses the number or the tag of a model version, not both; with neither, the latest is meant."""
    if tag and version is not None:
        raise FieldInvalid("tag", "and version both select a version: choose one")
    return version, parse_tag("tag", tag) if tag else ""


def parse_architecture(field: str, value: str) -> str:
    """Parses the name of an architecture, which may be empty."""
    if value and not ARCHITECTURE.fullmatch(value):
        raise FieldInvalid(
            field, f"{value[:80]!r} is not a name of up to 100 letters, digits, dots, dashes, underscores"
        )
    return value


def parse_failure_reason(field: str, value: str) -> str:
    """Parses the reason of a failure that a participant reports."""
    if not REASON.fullmatch(value):
        raise FieldInvalid(
            field, f"{value[:80]!r} is not a reason of 1 to 64 letters, digits and underscores, such as TRAIN_FAILED"
        )
    if value == ABSENT:
        raise FieldInvalid(field, f"is {ABSENT}, which only the server reports: choose another one")
    return value


def parse_tag(field: str, value: str) -> str:
    """Parses a tag of a version."""
    if not TAG.fullmatch(value):
        raise FieldInvalid(
            field, f"{value[:80]!r} is not a tag of 1 to 50 lower-case letters, digits, dots, dashes, underscores"
        )
    return value


def parse_digest(field: str, value: str) -> str | None:
    """Parses a SHA-256 in hexadecimal digits and returns it in lower case; returns None for an empty string."""
    if value and not SHA256.fullmatch(value):
        raise FieldInvalid(field, "is not a SHA-256 of 64 hexadecimal digits")
    return value.lower() or None


def parse_token_id(field: str, value: str) -> str:
    """Parses the id of a token and returns it in lower case."""
    if not TOKEN_ID.fullmatch(value):
        # Without the value: it may be the token itself.
        raise FieldInvalid(field, f"is not a token id of {ID_DIGITS} hexadecimal digits: GetUser lists them")
    return value.lower()


def parse_certificate_names(field: str, values: Iterable[str]) -> list[str]:
    """Parses a set of names in client certificates and returns it sorted."""
    found = sorted(set(values))
    if len(found) > MAX_CERTIFICATE_NAMES:
        raise FieldInvalid(field, f"has {len(found)} entries; at most {MAX_CERTIFICATE_NAMES}")
    for value in found:
        if not CERTIFICATE_NAME.fullmatch(value):
            raise FieldInvalid(
                field, "must be DNS names, URIs or e-mail addresses of up to 250 visible ASCII characters"
            )
    return found


def parse_optional_duration(field: str, message: Message, longest: timedelta, prefix: str = "") -> timedelta | None:
    """Parses a positive duration in a field of a message; returns None if the field is unset.

    The prefix is the path of the message in the request, with a dot at its end.
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


def parse_labels(field: str, values: Mapping[str, str]) -> dict[str, str]:
    """Checks the labels of a user or of a cohort, and returns them."""
    return _parse_texts(field, values, MAX_LABELS)


def parse_attributes(field: str, values: Mapping[str, str]) -> dict[str, str]:
    """Checks what a participant says of itself, and returns it."""
    return _parse_texts(field, values, MAX_ATTRIBUTES)


def _parse_texts(field: str, values: Mapping[str, str], most: int) -> dict[str, str]:
    if len(values) > most:
        raise FieldInvalid(field, f"has {len(values)} entries; at most {most}")
    return {
        parse_text(field, name, MAX_TEXT_NAME, required=True): parse_text(f"{field}[{name!r}]", value, MAX_TEXT_VALUE)
        for name, value in values.items()
    }


def parse_at_most(field: str, value: int, largest: int) -> int:
    """Checks that a number is not too large, and returns it."""
    if value > largest:
        raise FieldInvalid(field, f"is {value}; at most {largest}")
    return value


def parse_num_examples(value: int, highest: int = MAX_NUM_EXAMPLES) -> int:
    """Checks a number of examples and returns it.

    Raises:
        NumExamples: It is out of range.
    """
    if not 0 <= value <= highest:
        raise NumExamples(value, highest)
    return value


def parse_metrics(message: round_pb2.UpdateSpec | round_pb2.SubmitMetricsRequest) -> dict[str, MetricValue]:
    """Checks the numbers, texts and lists among the metrics of a submission, and returns them by name.

    NaN and infinity are allowed.
    """
    numbers, texts, lists = message.metrics, message.text_metrics, message.list_metrics
    if len(numbers) + len(texts) + len(lists) > MAX_METRICS:
        raise FieldInvalid("metrics", f"has {len(numbers) + len(texts) + len(lists)} entries; at most {MAX_METRICS}")
    found: dict[str, MetricValue] = dict(numbers)
    kept_bytes = 0
    for name, text in texts.items():
        found[name] = parse_text("text_metrics", text, MAX_TEXT_METRIC)
        kept_bytes += len(text.encode())
    for name, values in lists.items():
        parse_at_most(f"list_metrics[{name!r}]", len(values.values), MAX_LIST_METRIC)
        found[name] = [value if math.isfinite(value) else str(value) for value in values.values]
        kept_bytes += 8 * len(values.values)
    if kept_bytes > MAX_KEPT_BYTES:
        raise FieldInvalid(
            "text_metrics", f"and list_metrics have {kept_bytes} bytes together; at most {MAX_KEPT_BYTES}"
        )
    for name in found:
        parse_text("metrics", name, MAX_METRIC_NAME, required=True)
    if len(found) < len(numbers) + len(texts) + len(lists):
        raise FieldInvalid("metrics", "has a name that text_metrics or list_metrics has, too")
    return found


def parse_metric_names(values: Collection[str]) -> tuple[str, ...]:
    """Checks the names of the metrics that evaluation reports must have, each once, and returns them."""
    if len(values) > MAX_METRIC_NAMES:
        raise FieldInvalid("spec.metric_names", f"has {len(values)} entries; at most {MAX_METRIC_NAMES}")
    names = [parse_text("spec.metric_names", value, MAX_METRIC_NAME, required=True) for value in values]
    if len(set(names)) != len(names):
        raise FieldInvalid("spec.metric_names", "contains a name twice")
    return tuple(names)
