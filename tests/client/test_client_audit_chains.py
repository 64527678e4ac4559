"""Verification of an audit log of several chains: whatever is done to it, with a saved head it is found."""

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.audit_logs import SERVER, Log
from client.scripted import OK, OTHER, TRAINING, cut
from client.test_client_audit import message
from fedround.v1.audit_pb2 import AuditHead as HeadMessage
from fedround.v1.audit_pb2 import GetAuditHeadResponse, ReadAuditResponse
from fedround_client import AuditBroken, AuditEntry, AuditHead
from fedround_client.audit_chain import verify

pytestmark = pytest.mark.timeout(60)

THIRD = "33333333-3333-4333-8333-333333333333"
CHAINS = (SERVER, TRAINING, OTHER, THIRD)
RECORD = "record"


@st.composite
def logs(draw):
    """A log with some entries in some chains, and the head that was saved at its end."""
    log = Log()
    for step in draw(st.lists(st.sampled_from([*CHAINS, RECORD]), min_size=1, max_size=25)):
        if step == RECORD:
            log.record_heads()
        else:
            log.add("tested", step)
    return log, log.record_heads()


def change(log, chain, index, draw):
    """Changes a field of an entry."""
    entries = log.chains[chain]
    field = draw(st.sampled_from(["user_id", "action", "training_id", "subject", "facts", "hash", "previous_hash"]))
    entries[index] = replace(entries[index], **{field: "e" * 64})


def change_with_hash(log, chain, index, draw):
    """Changes an entry, with its hash."""
    entries = log.chains[chain]
    changed = replace(entries[index], user_id="changed")
    entries[index] = replace(changed, hash=changed.digest())


def drop(log, chain, index, draw):
    """Removes an entry."""
    del log.chains[chain][index]


def repeat(log, chain, index, draw):
    """Inserts an entry once more."""
    log.chains[chain].insert(index, log.chains[chain][index])


def reorder(log, chain, index, draw):
    """Moves an entry to the beginning, or the first one to the end."""
    entries = log.chains[chain]
    entries.insert(0 if index else len(entries), entries.pop(index))
    if len(entries) == 1:
        drop(log, chain, 0, draw)


def rewrite(log, chain, index, draw):
    """Changes an entry, and the hashes of all that follow it in its chain."""
    entries = log.chains[chain]
    log.rewrite(chain, [*entries[:index], replace(entries[index], user_id="changed"), *entries[index + 1 :]])


def cut_off(log, chain, index, draw):
    """Cuts off the end of a chain, with its head."""
    del log.chains[chain][index:]


def drop_chain(log, chain, index, draw):
    """Removes a whole chain; the server's is emptied."""
    if chain == SERVER:
        log.chains = {SERVER: []}
    else:
        del log.chains[chain]


def drop_chain_everywhere(log, chain, index, draw):
    """Removes a chain, and what the server's chain has of it."""
    drop_chain(log, chain, index, draw)
    log.rewrite(SERVER, [entry for entry in log.chains[SERVER] if entry.training_id != chain or not chain])
    if chain == SERVER:
        return
    kept = [entry for entry in log.chains[SERVER] if entry.action != "heads_recorded"]
    log.rewrite(SERVER, kept)


def swap_chains(log, chain, index, draw):
    """Gives a chain the entries of another one, or of a training that there is not."""
    other = draw(st.sampled_from([one for one in (*CHAINS, "another") if one != chain]))
    moved = log.chains.pop(chain, [])
    log.chains[chain] = [replace(entry, chain=chain) for entry in log.chains.pop(other, [])]
    log.chains[other] = [replace(entry, chain=other) for entry in moved]
    log.starts.setdefault(other, "0" * 64)
    log.chains = {one: log.chains[one] for one in sorted(log.chains)}


TAMPERING = (
    change,
    change_with_hash,
    drop,
    repeat,
    reorder,
    rewrite,
    cut_off,
    drop_chain,
    drop_chain_everywhere,
    swap_chains,
)


@given(logs())
@settings(deadline=None)
def test_a_log_that_was_not_changed_is_valid(made):
    log, saved = made
    report = verify(log.items(), saved)
    assert (report.head, report.uncovered) == (saved, 0)
    assert report.chains == len(log.chains) - 1
    assert report.entries == sum(map(len, log.chains.values()))


@pytest.mark.parametrize("tamper", TAMPERING)
@given(logs(), st.data())
@settings(deadline=None)
def test_what_is_done_to_a_log_is_found_with_a_saved_head(tamper, made, data):
    log, saved = made
    chain = data.draw(st.sampled_from(sorted(log.chains)))
    index = data.draw(st.integers(0, len(log.chains[chain]) - 1))
    tamper(log, chain, index, data.draw)
    with pytest.raises(AuditBroken):
        verify(log.items(), saved)


@given(logs(), st.data())
@settings(deadline=None)
def test_a_chain_without_its_head_is_found(made, data):
    items = made[0].items()
    heads = [index for index, item in enumerate(items) if isinstance(item, AuditHead)]
    del items[data.draw(st.sampled_from(heads))]
    with pytest.raises(AuditBroken):
        verify(items)


@given(logs(), logs())
@settings(deadline=None)
def test_an_earlier_head_holds_in_what_has_come_since(made, more):
    log, saved = made
    for chain, entries in more[0].chains.items():
        for _ in entries:
            log.add("tested", chain)
    report = verify(log.items(), saved)
    assert report.uncovered == sum(len(entries) for chain, entries in more[0].chains.items() if chain != SERVER)


def two_trainings():
    log = Log()
    log.add("server_started")
    log.add("tested", TRAINING)
    log.add("tested", TRAINING)
    log.add("tested", OTHER)
    return log


def broken(items, anchor=None):
    with pytest.raises(AuditBroken) as found:
        verify(items, anchor)
    return found.value.chain, found.value.sequence, found.value.problem


def test_the_loss_of_a_whole_chain_is_found_without_a_saved_head():
    log = two_trainings()
    del log.chains[OTHER]
    assert broken(log.items()) == (OTHER, 1, "is missing, with the whole chain of the training")
    with pytest.raises(AuditBroken, match=f"entry 1 of the training {OTHER}: is missing, with the whole chain"):
        verify(log.items())


def test_a_cut_in_front_of_a_recorded_head_is_found_without_a_saved_one():
    log = two_trainings()
    log.record_heads()
    log.add("tested", TRAINING)
    cut_off(log, TRAINING, 2, None)
    assert verify(log.items()).uncovered == 0
    cut_off(log, TRAINING, 1, None)
    assert broken(log.items()) == (TRAINING, 2, "is missing: the log was cut off, it had 2 entries before")


def test_a_head_of_a_training_holds_too():
    log = Log()
    log.add("tested", TRAINING)
    log.add("tested", TRAINING)
    saved = log.head(TRAINING)
    log.add("tested", TRAINING)
    verify(log.items(), saved)
    rewrite(log, TRAINING, 1, None)
    assert broken(log.items(), saved)[:2] == (TRAINING, 2)
    log.chains = {SERVER: []}
    assert broken(log.items(), saved) == (TRAINING, 1, "is missing, with the whole chain of the training")


def test_a_head_of_the_single_chain_of_earlier_versions_holds():
    log = Log()
    log.add("round_opened", training_id=TRAINING, subject=0)
    saved = log.head(SERVER)
    log.add("round_closed", TRAINING, subject=0)
    log.add("round_abandoned", TRAINING, subject=0)
    report = verify(log.items(), AuditHead.parse(str(saved)))
    assert (report.chains, report.entries) == (1, 4)


@pytest.mark.parametrize(
    ("action", "place", "facts", "problem"),
    [
        ("tested", (SERVER, TRAINING), {}, "belongs in the chain of the training"),
        ("chain_begun", (SERVER, TRAINING), {}, "has begun before"),
        ("chain_begun", (SERVER, ""), {}, "has begun before"),
        ("tested", (TRAINING, OTHER), {}, "does not belong in the chain of this training"),
        ("tested", (TRAINING, ""), {}, "does not belong in the chain of this training"),
        ("chain_begun", (TRAINING, TRAINING), {}, "does not belong in the chain of this training"),
        ("heads_recorded", (TRAINING, TRAINING), {"heads": {}}, "does not belong in the chain of this training"),
        ("heads_recorded", (SERVER, ""), {"heads": {THIRD: f"1:{'a' * 64}"}}, "whose chain has not begun"),
        ("heads_recorded", (SERVER, ""), {"heads": {TRAINING: "1:a"}}, "is not SEQUENCE:HASH"),
        ("heads_recorded", (SERVER, ""), {"heads": []}, "lacks a field of heads_recorded"),
        ("heads_recorded", (SERVER, ""), {"heads": {TRAINING: 5}}, "lacks a field of heads_recorded"),
        ("heads_recorded", (SERVER, ""), {}, "lacks a field of heads_recorded"),
        ("heads_recorded", (SERVER, ""), {"heads": {TRAINING: f"2:{'a' * 64}"}}, "names another head"),
    ],
)
def test_entries_in_the_wrong_place_are_found(action, place, facts, problem):
    log = two_trainings()
    log.record_heads()
    chain, training_id = place
    entry = log.add(action, chain, training_id=training_id, **facts)
    found = broken(log.items())
    assert found[:2] == (chain, entry.sequence)
    assert problem in found[2]


def test_a_chain_that_is_not_in_the_servers_or_comes_twice_is_found():
    log = two_trainings()
    items = log.items()
    for chain in (SERVER, OTHER, TRAINING):
        again = [item for item in items if item.chain == chain]
        if chain != OTHER:
            assert broken([*items, *again]) == (chain, 1, "its chain comes a second time")
    unknown = [replace(item, chain=THIRD) for item in items if item.chain == OTHER]
    assert broken([*items, *unknown]) == (THIRD, 1, "the server's chain does not have its chain")


def test_the_end_of_a_chain_may_come_again_when_a_stream_goes_on():
    log = two_trainings()
    items = log.items()
    more = copy.deepcopy(log)
    more.add("tested", OTHER)
    later = [*items, items[-1], *more.items()[-2:]]
    assert verify(later).entries == verify(items).entries + 1


def head_message(head):
    return HeadMessage(sequence=head.sequence, hash=head.hash, chain=head.chain)


def test_all_chains_are_read_across_a_lost_connection(server):
    log = two_trainings()
    head = log.record_heads()
    messages = {chain: [message(entry) for entry in entries] for chain, entries in log.chains.items()}
    call = server.run(server.client.verify_audit)
    server.reply("GetAuditHead", GetAuditHeadResponse(head=head_message(head)))
    request, rpc = server.stream("ReadAudit")
    assert (request.all_chains, request.until_sequence) == (True, head.sequence)
    rpc.send_response(ReadAuditResponse(head=head_message(head)))
    rpc.send_response(ReadAuditResponse(entries=[*messages[SERVER], messages[TRAINING][0]]))
    cut(rpc)
    request, rpc = server.stream("ReadAudit")
    assert (request.chain, request.after_sequence, request.until_sequence) == (TRAINING, 1, head.sequence)
    rpc.send_response(ReadAuditResponse(head=HeadMessage(sequence=99)))
    rpc.send_response(ReadAuditResponse(entries=messages[TRAINING][1:]))
    rpc.send_response(ReadAuditResponse(heads=[head_message(log.head(TRAINING))]))
    cut(rpc)
    _, rpc = server.stream("ReadAudit")
    # The head of the chain behind which the stream goes on comes once more.
    heads = [head_message(log.head(chain)) for chain in (TRAINING, OTHER)]
    rpc.send_response(ReadAuditResponse(entries=messages[OTHER], heads=heads))
    rpc.terminate(*OK)
    report = call.result(20)
    assert (report.head, report.chains, report.uncovered) == (head, 2, 0)


def test_one_chain_is_read_up_to_its_head(server):
    log = two_trainings()
    call = server.run(lambda: list(server.client.read_audit(1, chain=TRAINING)))
    request, rpc = server.stream("ReadAudit")
    assert (request.chain, request.after_sequence, request.all_chains) == (TRAINING, 1, False)
    rpc.send_response(ReadAuditResponse(head=head_message(log.head(TRAINING))))
    rpc.send_response(ReadAuditResponse(entries=[message(log.chains[TRAINING][1])]))
    later = log.add("tested", TRAINING)
    rpc.send_response(ReadAuditResponse(entries=[message(later)]))
    rpc.terminate(*OK)
    assert call.result(20) == log.chains[TRAINING][1:2]


def test_a_server_of_an_earlier_version_has_one_chain(server):
    log = Log()
    log.add("server_started")
    log.add("training_created", training_id=TRAINING)
    call = server.run(lambda: list(server.client.read_audit()))
    server.reply("GetAuditHead", GetAuditHeadResponse(head=head_message(log.head(SERVER))))
    _, rpc = server.stream("ReadAudit")
    rpc.send_response(ReadAuditResponse(entries=[message(entry) for entry in log.chains[SERVER]]))
    rpc.terminate(*OK)
    read = call.result(20)
    assert all(isinstance(entry, AuditEntry) for entry in read)
    assert read == log.chains[SERVER]
