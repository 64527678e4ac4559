"""The audit log over a real port: who may read it, what errors leave in it, and what survives a kill."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import fedround_client as fr
from calls import Person, fails_with, model_file, new_id, until
from fedround.v1 import audit_pb2, training_pb2, user_pb2
from servers import Server


@pytest.fixture(scope="session")
def auditor(server: Server) -> Iterator[fr.Client]:
    with fr.connect(server.address, server.admin_token) as client:
        yield client


def trained(actor: Person, clients: list[Person]) -> training_pb2.Training:
    """A training whose round is done."""
    made = actor.create(client_ids=[client.user_id for client in clients])
    actor.start(made.training_id)
    for number, client in enumerate(clients, 1):
        client.submit(made.training_id, model_file(number), num_examples=number)
    until(lambda: actor.get(made.training_id).model_version == 1)
    return made


def contributions(person: Person, model_id: str, **request: Any) -> audit_pb2.GetContributionsResponse:
    return person.audit.GetContributions(audit_pb2.GetContributionsRequest(model_id=model_id, **request))


def test_the_log_of_a_server_holds(actor: Person, clients: list[Person], auditor: fr.Client) -> None:
    before = auditor.audit_head()
    made = trained(actor, clients)
    report = auditor.verify_audit(before)
    assert report.head.sequence > before.sequence
    entries = [entry for entry in auditor.read_audit(before.sequence) if entry.training_id == made.training_id]
    assert [entry.action for entry in entries if entry.user_id == actor.user_id] == [
        "chain_begun",
        "training_created",
        "clients_registered",
        "training_started",
        "round_opened",
    ]
    assert [entry.user_id for entry in entries if entry.action == "update_accepted"] == [one.user_id for one in clients]
    assert {entry.user_id for entry in entries if entry.action == "version_made"} == {""}


def test_the_stream_ends_where_the_log_ended(admin: Person, actor: Person) -> None:
    head = admin.audit.GetAuditHead(audit_pb2.GetAuditHeadRequest()).head
    first, *rest = admin.audit.ReadAudit(audit_pb2.ReadAuditRequest(after_sequence=head.sequence - 2))
    assert first.head.sequence >= head.sequence
    assert not first.entries
    entries = [entry for message in rest for entry in message.entries]
    assert [entry.sequence for entry in entries] == list(range(head.sequence - 1, first.head.sequence + 1))
    assert entries[-1].hash == first.head.hash
    assert list(admin.audit.ReadAudit(audit_pb2.ReadAuditRequest(after_sequence=first.head.sequence + 99)))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "after_sequence"):
        list(admin.audit.ReadAudit(audit_pb2.ReadAuditRequest(after_sequence=1 << 62)))


def test_one_chain_or_all_of_them_are_streamed(admin: Person, actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients)
    first, *rest = admin.audit.ReadAudit(audit_pb2.ReadAuditRequest(chain=made.training_id, after_sequence=1))
    entries = [entry for message in rest for entry in message.entries]
    assert {entry.chain for entry in entries} == {entry.training_id for entry in entries} == {made.training_id}
    assert [entry.sequence for entry in entries] == list(range(2, first.head.sequence + 1))
    assert (first.head.chain, first.head.hash) == (made.training_id, entries[-1].hash)
    # It goes on behind an entry, with the head of the chain that ends there, and the chains that follow.
    request = audit_pb2.ReadAuditRequest(
        chain=made.training_id, after_sequence=first.head.sequence, all_chains=True, until_sequence=1 << 40
    )
    start, *rest = admin.audit.ReadAudit(request)
    assert start.head.chain == ""
    assert rest[0].heads[0] == first.head
    assert made.training_id not in {entry.chain for message in rest for entry in message.entries}
    # Nothing is known of a training whose chain begins later.
    request = audit_pb2.ReadAuditRequest(all_chains=True, until_sequence=1)
    _, *rest = admin.audit.ReadAudit(request)
    assert [(entry.chain, entry.sequence) for message in rest for entry in message.entries] == [("", 1)]
    (message,) = admin.audit.ReadAudit(audit_pb2.ReadAuditRequest(chain=new_id()))
    assert message.head.sequence == 0
    for request, field in (
        (audit_pb2.ReadAuditRequest(chain="x"), "chain"),
        (audit_pb2.ReadAuditRequest(all_chains=True, until_sequence=1 << 62), "until_sequence"),
    ):
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field):
            list(admin.audit.ReadAudit(request))


def test_a_head_covers_all_chains(actor: Person, clients: list[Person], auditor: fr.Client) -> None:
    made = trained(actor, clients)
    report = auditor.verify_audit()
    entries = list(auditor.read_audit())
    assert report.chains == len({entry.chain for entry in entries} - {""})
    recorded = [entry.facts for entry in entries if entry.action == "heads_recorded"]
    assert any(made.training_id in facts for facts in recorded)
    origin = contributions(actor, made.model_id).origin
    assert (origin.chain, origin.training_id) == (made.training_id, made.training_id)
    entry = next(auditor.read_audit(origin.sequence - 1, chain=origin.chain))
    assert entry.action == "version_made"


def test_who_contributed_is_for_the_owner(actor: Person, clients: list[Person], person: Any) -> None:
    made = trained(actor, clients)
    found = contributions(actor, made.model_id)
    assert (found.origin.version, found.origin.training_id, found.origin.num_examples) == (1, made.training_id, 6)
    assert found.origin.aggregation.HasField("fed_avg")
    assert {(one.user_id, one.num_examples, one.weight) for one in found.contributions} == {
        (client.user_id, number, f"{number}/6") for number, client in enumerate(clients, 1)
    }
    assert all(one.user_name and len(one.sha256) == 64 for one in found.contributions)
    assert not contributions(actor, made.model_id, version=0).contributions
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
        contributions(actor, made.model_id, version=2)
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
        contributions(person("ACTOR"), made.model_id)
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "ACTOR"):
        contributions(clients[0], made.model_id)


def test_contributions_come_in_pages(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients)
    whole = contributions(actor, made.model_id)
    assert not whole.next_page_token
    first = contributions(actor, made.model_id, page_size=2)
    second = contributions(actor, made.model_id, page_size=2, page_token=first.next_page_token)
    assert [*first.contributions, *second.contributions] == list(whole.contributions)
    assert not second.next_page_token
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "page_token"):
        contributions(actor, made.model_id, page_token="?")


def test_a_denied_call_is_recorded_with_its_caller_and_without_its_message(
    server: Server, auditor: fr.Client, actor: Person
) -> None:
    before = auditor.audit_head()
    words = f"words-{new_id()}"
    for _ in range(20):
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "training_id"):
            actor.get(words)
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "ADMIN"):
        actor.users.CreateUser(user_pb2.CreateUserRequest(name=words, role="ROLE_CLIENT"))

    def denied() -> list[fr.AuditEntry]:
        entries = auditor.read_audit(before.sequence)
        return [entry for entry in entries if entry.action == "call_refused" and entry.subject == actor.user_id]

    until(lambda: len(denied()) >= 2)
    assert '"method":"/fedround.v1.TrainingService/GetTraining"' in denied()[0].facts
    assert '"reason":"FIELD_INVALID"' in denied()[0].facts
    everything = str(list(auditor.read_audit(before.sequence)))
    assert words not in everything
    for token in (actor.token, server.admin_token):
        assert token not in everything


def test_what_a_kill_leaves_holds_and_a_good_stop_loses_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, grpc.insecure_channel(server.address) as channel:
        admin = Person(channel, server.admin_token)
        actor, *clients = [admin.make(server.address, role) for role in ("ACTOR", "CLIENT", "CLIENT")]
        made = actor.create(client_ids=[client.user_id for client in clients], target_num_updates=9)
        actor.start(made.training_id)
        clients[0].submit(made.training_id, model_file(1))
        with fr.connect(server.address, server.admin_token) as auditor:
            anchor = auditor.audit_head()
            clients[1].submit(made.training_id, model_file(2))
            server.kill()
            server.start()
            until(lambda: auditor.verify_audit(anchor).versions == 1)
            for _ in range(5):
                with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
                    clients[0].get(new_id())
            assert server.stop() == 0
            server.start()
            assert auditor.verify_audit(anchor).refused == 5
            life = [entry.action for entry in auditor.read_audit() if entry.action.startswith("server_")]
        for person in (actor, *clients):
            person.channel.close()
    assert life == ["server_started", "server_started", "server_stopped", "server_started"]
