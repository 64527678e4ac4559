"""What is remembered is what would be made anew, of the latest texts, and no more than allowed."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.recent import Recent

texts = st.lists(st.text("ab", max_size=4), max_size=60)


@given(texts, st.integers(0, 8))
def test_only_texts_that_are_not_among_the_latest_are_read_anew(asked: list[str], most: int) -> None:
    read: list[str] = []

    def make(text: str) -> str:
        read.append(text)
        return text.upper()

    recent = Recent(make, most)
    latest: OrderedDict[str, None] = OrderedDict()
    expected: list[str] = []
    for text in asked:
        assert recent(text) == text.upper()
        if text not in latest:
            expected.append(text)
        if len(text) <= most:
            latest[text] = None
            latest.move_to_end(text)
        while sum(map(len, latest)) > most:
            latest.popitem(last=False)
    assert read == expected


def test_what_is_raised_is_not_remembered() -> None:
    answers = iter([ValueError("bad"), None])

    def make(text: bytes) -> bytes:
        if (error := next(answers)) is not None:
            raise error
        return text

    recent = Recent(make, 10)
    with pytest.raises(ValueError, match="bad"):
        recent(b"text")
    assert recent(b"text") is recent(b"text")
