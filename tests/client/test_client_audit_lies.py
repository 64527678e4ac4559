"""`fedround audit verify` against a server, or a file, that lies: a sentence and an exit code, whatever it says."""

import json
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.scripted import MODEL, OK, TRAINING, USER, done
from client.test_client_audit import accepted, chain, message
from fedround.v1.audit_pb2 import AuditHead as HeadMessage
from fedround.v1.audit_pb2 import GetAuditHeadResponse, ReadAuditResponse
from fedround_client import AuditBroken, AuditEntry, AuditHead
from fedround_client.audit_chain import verify
from fedround_client.audit_entry import START
from fedround_client.errors import ResponseInvalid, from_rpc_error

pytestmark = pytest.mark.timeout(60)

DEEP = "[" * 100_000
ACTIONS = [
    *("call_refused", "model_created", "round_opened", "update_accepted", "report_accepted", "round_closed"),
    *("updates_counted", "updates_superseded", "round_done", "round_abandoned", "version_made", "other"),
    *("chain_begun", "heads_recorded"),
]
FIELDS = [
    *("round", "participant_id", "sha256", "num_examples", "updates", "update_id", "weight"),
    *("update_ids", "reason", "num_updates", "count", "heads", TRAINING),
]


def entry(facts, action="update_accepted", subject="0"):
    """Returns the first entry of a log, with a valid hash unless it cannot have one."""
    made = AuditEntry(1, 1000, USER, action, TRAINING, MODEL, subject, facts, START, START)
    return replace(made, hash=made.digest())


def whole(*entries):
    return verify([*entries, AuditHead(len(entries), entries[-1].hash)])


@pytest.mark.parametrize(
    ("action", "facts", "problem"),
    [
        ("update_accepted", DEEP, "nested too deeply"),
        ("update_accepted", '{"a":' * 50_000, "nested too deeply"),
        ("call_refused", '{"count": NaN}', "NaN"),
        ("call_refused", '{"count": Infinity}', "Infinity"),
        ("call_refused", '{"count": 1e999}', "count is not a whole number"),
        ("call_refused", '{"count": 1' + "0" * 4000 + "}", "count is not a whole number"),
        ("call_refused", '{"count": 1' + "0" * 5000 + "}", "limit"),
        ("call_refused", '{"count": true}', "count is not a whole number"),
        ("call_refused", '{"count": "3"}', "count is not a whole number"),
        ("call_refused", '{"count": -1}', "count is not a whole number"),
        ("call_refused", "[]", "lacks a field of call_refused"),
        ("call_refused", "null", "lacks a field of call_refused"),
        ("call_refused", "{", "its facts are not JSON: Expecting property name"),
        ("call_refused", "", "its facts are not JSON: Expecting value"),
        ("round_opened", "{}", "'\\x1b' is not a whole number"),
    ],
)
def test_facts_that_are_lies_are_a_broken_log(server, command, action, facts, problem):
    lie = entry(facts, action, subject="\x1b")
    call = command("audit", "verify")
    head = HeadMessage(sequence=1, hash=lie.hash)
    server.reply("GetAuditHead", GetAuditHeadResponse(head=head))
    _, rpc = server.stream("ReadAudit")
    rpc.send_response(ReadAuditResponse(entries=[message(lie)]))
    rpc.terminate(*OK)
    stderr = done(call, 1).stderr
    assert stderr.startswith("error: AUDIT_BROKEN: entry 1: ")
    assert problem in stderr
    assert stderr.count("\n") == 1


def test_what_the_entries_say_reaches_no_terminal(server, command):
    (lie,) = chain(accepted("\x1b[2J\u202e", number=0))
    call = command("audit", "verify", "--format", "json")
    server.reply("GetAuditHead", GetAuditHeadResponse(head=HeadMessage(sequence=1, hash="\x1b[31m")))
    _, rpc = server.stream("ReadAudit")
    rpc.send_response(ReadAuditResponse(entries=[message(replace(lie, training_id="\x1b"))]))
    rpc.terminate(*OK)
    stderr = done(call, 1).stderr
    assert "\x1b" not in stderr
    printed, metadata = json.loads(stderr), {"sequence": "1", "chain": ""}
    assert (printed["code"], printed["reason"], printed["metadata"]) == ("DATA_LOSS", "AUDIT_BROKEN", metadata)


def test_a_head_is_printed_without_control_characters(server, command):
    call = command("audit", "head")
    server.reply("GetAuditHead", GetAuditHeadResponse(head=HeadMessage(sequence=1, hash="\x1b[31m")))
    assert done(call).stdout == "1:\\x1b[31m\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=9),
    max_leaves=12,
)
LIES = st.lists(
    st.tuples(
        st.sampled_from(ACTIONS),
        st.sampled_from(["0", "1", "a", "", "-1", "9" * 5000]),
        VALUES | st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=4),
    ),
    min_size=1,
    max_size=6,
)


@given(LIES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_log_is_valid_or_broken_and_never_raises_anything_else(records):
    try:
        report = whole(*chain(*records))
    except AuditBroken as broken:
        str(broken).encode()
    else:
        json.dumps(str(report))


@given(st.text(st.characters(exclude_categories=())) | VALUES.map(json.dumps))
def test_facts_of_any_text_are_valid_or_broken(facts):
    made = AuditEntry(1, 1000, USER, "updates_counted", TRAINING, MODEL, "0", facts, START, START)
    with suppress(AuditBroken):
        whole(replace(made, hash=made.digest()) if facts.isascii() else made)


LINE = json.dumps(entry("{}", "other").__dict__)


@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        "NaN",
        "1" * 5000,
        '{"head": ' + DEEP,
        '{"head": 5}',
        '{"head": "5:x"}',
        LINE.replace('"time_us": 1000', '"time_us": NaN'),
        LINE.replace('"time_us": 1000', '"time_us": 1e400'),
        LINE.replace('"time_us": 1000', '"time_us": 1' + "0" * 4290),
        LINE.replace('"facts": "{}"', '"facts": "\\ud800"'),
        LINE.replace('"sequence": 1', '"sequence": true'),
    ],
)
def test_a_file_that_lies_is_a_broken_log(command, tmp_path, line):
    file = tmp_path / "audit.jsonl"
    file.write_text(line + "\n")
    stderr = done(command("audit", "verify", "--file", file), 1).stderr
    assert stderr.startswith("error: AUDIT_BROKEN: entry 1: ")
    assert stderr.count("\n") == 1


class Undecodable(grpc.RpcError):
    """What grpc raises after the deserializer has failed, for example on text that is not UTF-8."""

    def code(self):
        return grpc.StatusCode.INTERNAL

    def details(self):
        return "Exception deserializing response!"

    def trailing_metadata(self):
        return ()


def test_an_answer_that_cannot_be_decoded_is_not_asked_for_again():
    error = from_rpc_error(Undecodable(), "there:1")
    assert isinstance(error, ResponseInvalid)
    assert not error.transient
    assert "there:1" in str(error)
