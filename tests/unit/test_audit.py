"""How entries of the audit log are encoded and hashed: the same by the server and by who verifies it."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fedround_client.audit_chain import AuditEntry, AuditHead
from fedround_server.domain.audit import DOMAIN, EPOCH, START, AuditRecord, audit_chain, digest, encode, to_json
from fedround_server.domain.audit import AuditHead as Head

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FIELDS = st.lists(TEXT | st.integers(), max_size=10)
FACTS = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
RECORDS = st.builds(AuditRecord, TEXT, TEXT, TEXT, TEXT, FACTS)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1)).map(lambda time: time.replace(tzinfo=EPOCH.tzinfo))


def decode(data: bytes) -> list[str]:
    """Reads netstrings."""
    texts = []
    while data:
        length, _, rest = data.partition(b":")
        assert str(int(length)).encode() == length
        assert rest[int(length) : int(length) + 1] == b","
        texts.append(rest[: int(length)].decode())
        data = rest[int(length) + 1 :]
    return texts


@given(FIELDS)
def test_what_is_hashed_can_be_read_back_so_no_two_entries_are_hashed_alike(fields: list[str | int]) -> None:
    assert decode(encode(fields)) == [DOMAIN, *(str(value) for value in fields)]


@given(st.lists(RECORDS, min_size=1, max_size=3), TEXT, TIMES)
def test_client_and_server_hash_alike(records: list[AuditRecord], user_id: str, time: datetime) -> None:
    entries = audit_chain(records, user_id, Head(0, START), time)
    previous = START
    for sequence, (record, entry) in enumerate(zip(records, entries, strict=True), 1):
        time_us = (entry.time - EPOCH) // timedelta(microseconds=1)
        about = (entry.action, entry.training_id, entry.model_id, entry.subject, entry.facts)
        read = AuditEntry(entry.sequence, time_us, entry.user_id, *about, entry.previous_hash, entry.hash)
        assert read.digest() == entry.hash
        assert (entry.sequence, entry.user_id, entry.previous_hash) == (sequence, user_id, previous)
        assert about == (record.action, record.training_id, record.model_id, record.subject, to_json(record.facts))
        previous = entry.hash


def test_a_hash_is_what_it_was() -> None:
    fields = (1, 1_700_000_000_000_000, "", "server_started", "", "", "", '{"version":"0.1.0"}', START)
    assert encode(fields)[:29] == b"17:fedround.audit.v1,1:1,16:1"
    assert digest(fields) == "8e7a064624f60a6428a6a98880426a65d5ee6237d79732988f24314652001b69"


@given(FACTS)
def test_facts_are_ascii_and_don_t_depend_on_their_order(facts: dict[str, object]) -> None:
    text = to_json(facts)
    assert text.isascii()
    assert to_json(dict(reversed(facts.items()))) == text


def test_a_head_is_read_as_it_is_written() -> None:
    head = AuditHead(12, "0f" * 32)
    assert AuditHead.parse(f" {head}\n") == head
