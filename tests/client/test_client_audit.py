"""Verification of the audit log: entries with valid hashes that contradict each other, and lost connections."""

import json
from dataclasses import replace

import pytest

from client.scripted import MODEL, OK, OTHER, TRAINING, USER, cut
from fedround.v1.audit_pb2 import AuditEntry as EntryMessage
from fedround.v1.audit_pb2 import AuditHead as HeadMessage
from fedround.v1.audit_pb2 import GetAuditHeadResponse, ReadAuditResponse
from fedround_client import AuditBroken, AuditEntry, AuditHead
from fedround_client.audit_chain import AuditVerifier, verify
from fedround_client.audit_entry import START

pytestmark = pytest.mark.timeout(30)

DIGEST = "d" * 64


def record(action, subject="", **facts):
    """Returns the fields of an entry."""
    return action, str(subject), facts


def accepted(update_id, number=0, participant=None, examples=10):
    facts = {"round": number, "participant_id": participant or update_id, "sha256": DIGEST, "num_examples": examples}
    return record("update_accepted", update_id, **facts)


def counted(*updates, number=0, total=10, **changed):
    fields = {"sha256": DIGEST, "num_examples": 10, "weight": f"10/{total}", **changed}
    updates = [{"update_id": update, "participant_id": update, **fields} for update in updates]
    return record("updates_counted", number, updates=updates)


def superseded(*updates, reason="participant_removed"):
    return record("updates_superseded", 0, update_ids=list(updates), reason=reason)


def done(number=0, updates=1, examples=10):
    return record("round_done", number, kind="TRAIN", num_updates=updates, num_examples=examples)


def made(version=1, number=0, updates=1, examples=10):
    return record("version_made", version, kind="TRAIN", round=number, num_updates=updates, num_examples=examples)


CREATED = record("model_created", 0)
OPENED = record("round_opened", 0)
CLOSED = record("round_closed", 0)
REOPENED = record("round_reopened", 0)
ABANDONED = record("round_abandoned", 0)
NEXT = record("round_opened", 1)


def chain(*records):
    """Returns entries of the server's chain with valid hashes."""
    entries, previous = [], START
    for sequence, (action, subject, facts) in enumerate(records, 1):
        text = json.dumps(facts)
        entry = AuditEntry(sequence, 1000 + sequence, USER, action, TRAINING, MODEL, subject, text, previous, "")
        entries.append(replace(entry, hash=entry.digest()))
        previous = entries[-1].hash
    return entries


def whole(entries, head=None):
    """Verifies the server's chain as the whole log."""
    return verify([*entries, head or AuditHead(entries[-1].sequence, entries[-1].hash)])


def test_a_round_that_lost_an_update_is_closed_again():
    lost = superseded("a", reason="file_damaged")
    again = accepted("b", participant="a")
    records = [CREATED, OPENED, accepted("a"), CLOSED, REOPENED, lost, again, CLOSED]
    report = whole(chain(*records, counted("b", participant_id="a"), done(), made()))
    assert (report.updates, report.counted, report.superseded, report.versions) == (2, 1, 1, 1)


def test_consistent_entries_are_valid():
    records = [CREATED, OPENED, accepted("a"), accepted("b"), superseded("b"), CLOSED, counted("a"), done(), made()]
    report = whole(chain(*records, NEXT, accepted("c", 1), record("call_refused", count=3)))
    assert (report.updates, report.counted, report.superseded, report.waiting) == (3, 1, 1, 1)
    assert (report.versions, report.refused) == (1, 3)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([accepted("a")], "is not in progress"),
        ([OPENED, accepted("a", 1)], "is not in progress"),
        ([OPENED, CLOSED, accepted("a")], "was accepted for a round that was closed"),
        ([OPENED, accepted("a"), accepted("a", participant="b")], "the update a was accepted before"),
        ([OPENED, accepted("a"), accepted("b", participant="a")], "has sent another update before"),
        ([OPENED, accepted("a"), counted("a")], "are counted before the round is closed"),
        ([OPENED, CLOSED, counted("a")], "the update a is counted, but was not accepted"),
        ([OPENED, accepted("a"), CLOSED, counted("a"), counted("a")], "the update a is counted, but was not accepted"),
        (
            [OPENED, accepted("a"), superseded("a"), CLOSED, counted("a")],
            "the update a is counted, but was not accepted",
        ),
        ([OPENED, accepted("a"), CLOSED, counted("a", sha256="e" * 64)], "had another sha256"),
        ([OPENED, accepted("a"), CLOSED, counted("a", num_examples=11)], "had another num_examples"),
        (
            [OPENED, accepted("a"), CLOSED, counted("a", weight="9/10")],
            "the weight of the update a is not its num_examples",
        ),
        ([OPENED, accepted("a"), CLOSED, counted("a", total=20), done()], "do not add up to one"),
        ([OPENED, accepted("a"), CLOSED, done(updates=0, examples=0)], "neither counted nor superseded: a"),
        ([OPENED, accepted("a"), ABANDONED], "neither counted nor superseded: a"),
        ([OPENED, accepted("a"), superseded("a", reason="")], "without a reason"),
        ([OPENED, superseded("a")], "was not waiting"),
        ([OPENED, accepted("a"), CLOSED, counted("a"), done(updates=2)], "1 updates were counted, not 2"),
        ([OPENED, accepted("a"), CLOSED, counted("a"), done(examples=9)], "10 examples were counted"),
        ([OPENED, done(updates=0, examples=0)], "the round is done, but was not closed"),
        ([OPENED, CLOSED, CLOSED], "was closed before"),
        ([OPENED, REOPENED], "but was not closed"),
        ([OPENED, accepted("a"), CLOSED, counted("a"), REOPENED], "but its updates were counted"),
        ([OPENED, NEXT], "has not ended"),
        ([OPENED, ABANDONED, record("round_opened", 2)], "round 2 is not the next one"),
        ([OPENED, ABANDONED, OPENED], "round 0 is not the next one"),
        ([CREATED, CREATED], "was created before"),
        ([CREATED, made()], "no round was done"),
        ([CREATED, OPENED, accepted("a"), CLOSED, counted("a"), done(), made(2)], "version 2 is not the next one"),
        ([CREATED, OPENED, accepted("a"), CLOSED, counted("a"), done(), made(), made(2)], "no round was done"),
        ([CREATED, OPENED, accepted("a"), CLOSED, counted("a"), done(), made(updates=2)], "has another num_updates"),
        ([CREATED, OPENED, accepted("a"), CLOSED, counted("a"), done(), made(number=1)], "has another round"),
        ([OPENED, record("update_accepted", "a", round=0)], "lacks a field of update_accepted"),
        ([record("round_opened", "first")], "is not a whole number"),
    ],
)
def test_contradicting_entries_are_found(records, problem):
    *before, last = chain(*records)
    verifier = AuditVerifier()
    for entry in before:
        verifier.add(entry)
    with pytest.raises(AuditBroken) as broken:
        verifier.add(last)
    assert broken.value.sequence == last.sequence
    assert problem in broken.value.problem


def test_trainings_have_independent_rounds():
    first, second = chain(OPENED, OPENED)
    second = replace(second, training_id=OTHER)
    whole([first, replace(second, hash=second.digest())])


def message(entry):
    sent = EntryMessage(
        **{name: getattr(entry, name) for name in entry.__dataclass_fields__ if name != "time_us"},
    )
    sent.time.FromMicroseconds(entry.time_us)
    return sent


def test_the_log_is_verified_across_a_lost_connection(server):
    entries = chain(CREATED, OPENED, accepted("a"))
    head = HeadMessage(sequence=3, hash=entries[-1].hash)
    call = server.run(server.client.verify_audit)
    server.reply("GetAuditHead", GetAuditHeadResponse(head=head))
    request, rpc = server.stream("ReadAudit")
    assert request.after_sequence == 0
    rpc.send_response(ReadAuditResponse(head=head))
    rpc.send_response(ReadAuditResponse(entries=[message(entries[0])]))
    cut(rpc)
    request, rpc = server.stream("ReadAudit")
    assert request.after_sequence == 1
    rpc.send_response(ReadAuditResponse(head=HeadMessage(sequence=4)))
    # The log has grown meanwhile.
    later = message(chain(CREATED, OPENED, accepted("a"), CLOSED)[-1])
    rpc.send_response(ReadAuditResponse(entries=[*(message(entry) for entry in entries[1:]), later]))
    rpc.terminate(*OK)
    assert call.result(20).head == AuditHead(3, entries[-1].hash)


def test_a_server_with_fewer_entries_than_its_head_is_found(server):
    entries = chain(CREATED, OPENED)
    call = server.run(server.client.verify_audit)
    server.reply("GetAuditHead", GetAuditHeadResponse(head=HeadMessage(sequence=2, hash=entries[-1].hash)))
    _, rpc = server.stream("ReadAudit")
    rpc.send_response(ReadAuditResponse(entries=[message(entries[0])]))
    rpc.terminate(*OK)
    with pytest.raises(AuditBroken, match="entry 2: is missing"):
        call.result(20)
