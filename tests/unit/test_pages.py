"""Pages of lists: their size, and their tokens."""

import base64
import json

import pytest

from fedround.v1 import user_pb2
from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import pages


def user(size: int) -> user_pb2.User:
    return user_pb2.User(name="n" * size)


@pytest.mark.parametrize(
    ("sizes", "asked", "expected"),
    [
        ([], 5, 0),
        ([10] * 3, 5, 3),
        ([10] * 6, 5, 5),
        ([pages.MAX_BYTES // 4] * 6, 5, 3),
        # At least one, whatever its size: otherwise no page could go beyond it.
        ([pages.MAX_BYTES * 2] * 2, 5, 1),
        ([10, pages.MAX_BYTES * 2, 10], 5, 1),
    ],
)
def test_a_page_has_what_fits(sizes: list[int], asked: int, expected: int) -> None:
    found = list(enumerate(sizes))
    page, token = pages.cut(found, asked, lambda entry: user(entry[1]), lambda entry: f"behind {entry[0]}")
    assert [len(one.name) for one in page] == sizes[:expected]
    assert token == (f"behind {expected - 1}" if expected < len(found) else "")


def test_many_small_entries_stay_within_the_limit() -> None:
    page = pages.fitting(range(1_000_000), lambda _: user(1))
    assert 100_000 < len(page) < 1_000_000
    assert user_pb2.GetUsersResponse(users=page).ByteSize() <= pages.MAX_BYTES


def test_a_page_token_is_not_longer_than_any_valid_one() -> None:
    assert len(pages.format_token("\U0001f600" * 200)) < pages.MAX_TOKEN
    padded = json.dumps([7]) + " " * pages.MAX_TOKEN
    with pytest.raises(FieldInvalid, match="is not a next_page_token"):
        pages.parse_token(base64.urlsafe_b64encode(padded.encode()).decode(), int)
