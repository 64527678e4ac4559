"""Structures that are decoded once for all rows that have the same text."""

import json

from fedround_server.store.tables.base import SHARED_CHARACTERS, SharedJsonField


def test_equal_texts_are_decoded_once_and_kept_by_their_length() -> None:
    field = SharedJsonField()
    texts = [json.dumps({"name": letter * (SHARED_CHARACTERS // 3)}) for letter in "abcde"]
    first = [field.python_value(text) for text in texts]
    assert [one == json.loads(text) for one, text in zip(first, texts, strict=True)] == [True] * 5
    # The last two of them have room.
    assert [field.python_value(texts[number]) is first[number] for number in (4, 3, 0)] == [True, True, False]
    assert field.python_value(None) is None
