"""The model library by raw calls: versions, their tags, and which of them keep their files."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from safetensors.numpy import load

from calls import Person, digest, download, fails_with, model_file, new_id
from fedround.v1 import event_pb2, model_pb2, round_pb2, training_pb2

MAXIMIZE = training_pb2.GOAL_MAXIMIZE
EVALUATE = event_pb2.ROUND_KIND_EVALUATE


def tag(person: Person, model_id: str, version: int, name: str, *, remove: bool = False) -> list[str]:
    request = model_pb2.TagModelVersionRequest(model_id=model_id, version=version, tag=name, remove=remove)
    return list(person.models.TagModelVersion(request).version.tags)


def versions(person: Person, model_id: str, **page: Any) -> Any:
    return person.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=model_id, **page))


def tags(person: Person, model_id: str) -> dict[int, list[str]]:
    return {one.version: list(one.tags) for one in versions(person, model_id).versions}


def create(actor: Person, client: Person, scores: Sequence[float], **spec: Any) -> training_pb2.Training:
    """Creates a training that makes a version for each score."""
    return actor.create(client_ids=[client.user_id], target_num_updates=len(scores), metric_names=["score"], **spec)


def play(actor: Person, client: Person, training_id: str, scores: Sequence[float]) -> Iterator[event_pb2.Event]:
    """Plays the client, who gives version 1 the first of the scores; yields the actor's events meanwhile."""
    actor.start(training_id)
    for event in actor.subscribe(training_id):
        yield event
        if not event.HasField("round_started"):
            continue
        number, version = event.round_started.round, event.round_started.model.version
        if event.round_started.kind == EVALUATE:
            client.rounds.SubmitMetrics(
                round_pb2.SubmitMetricsRequest(
                    training_id=training_id, round=number, num_examples=1, metrics={"score": scores[version - 1]}
                )
            )
        else:
            client.submit(training_id, model_file(version + 1), number)


def trained(actor: Person, client: Person, scores: Sequence[float], **spec: Any) -> str:
    """Trains a model to its end; returns its id."""
    made = create(actor, client, scores, **spec)
    *_, last = play(actor, client, made.training_id, scores)
    assert last.training_finished.model_version == len(scores)
    return str(made.model_id)


class TestTags:
    @pytest.fixture
    def model_id(self, actor: Person, clients: list[Person]) -> str:
        return trained(actor, clients[0], (0.1, 0.2))

    def test_a_tag_of_ones_own_moves_and_pinned_stays(self, actor: Person, model_id: str) -> None:
        assert tag(actor, model_id, 0, "paper") == ["paper"]
        assert tag(actor, model_id, 1, "paper") == ["paper"]
        assert tag(actor, model_id, 0, "pinned") == ["pinned"]
        assert tag(actor, model_id, 1, "pinned") == ["paper", "pinned"]
        assert tags(actor, model_id) == {2: ["last"], 1: ["paper", "pinned"], 0: ["pinned"]}
        for _ in range(2):
            assert tag(actor, model_id, 1, "pinned", remove=True) == ["paper"]
        assert tags(actor, model_id) == {2: ["last"], 1: ["paper"], 0: ["pinned"]}

    def test_a_download_by_tag(self, actor: Person, clients: list[Person], model_id: str) -> None:
        for version in (0, 1):
            tag(actor, model_id, version, "pinned")
        for name, version in (("pinned", 1), ("last", 2)):
            for reader in (actor, clients[0]):
                info, data = download(reader, model_id, tag=name)
                assert (info.version, info.sha256) == (version, digest(data))
                assert data == download(actor, model_id, version=version)[1]
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "tagged best"):
            download(actor, model_id, tag="best")
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "choose one") as call:
            download(actor, model_id, tag="last", version=2)
        assert list(call.details.fields) == ["tag"]
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "lower-case letters") as call:
            download(actor, model_id, tag="Last")
        assert list(call.details.fields) == ["tag"]

    @pytest.mark.parametrize("remove", [False, True])
    def test_invalid_tags(self, actor: Person, model_id: str, remove: bool) -> None:
        for name, words in (
            ("last", "is set by the server: choose another one"),
            ("best", "is set by the server: choose another one"),
            ("", "1 to 50 lower-case letters"),
            ("Paper", "1 to 50 lower-case letters"),
            ("-paper", "1 to 50 lower-case letters"),
            ("a" * 51, "1 to 50 lower-case letters"),
        ):
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words) as call:
                tag(actor, model_id, 2, name, remove=remove)
            assert list(call.details.fields) == ["tag"]
        assert tags(actor, model_id) == {2: ["last"], 1: [], 0: []}

    def test_versions_that_are_not_the_callers(
        self, actor: Person, clients: list[Person], person: Callable[..., Person], model_id: str
    ) -> None:
        with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "requires the role ACTOR or ADMIN"):
            tag(clients[0], model_id, 0, "paper")
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", model_id):
            tag(person("ACTOR"), model_id, 0, "paper")
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "version 3 (the latest is 2)"):
            tag(actor, model_id, 3, "paper")
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
            tag(actor, new_id(), 0, "paper")
        assert tags(actor, model_id) == {2: ["last"], 1: [], 0: []}

    def test_who_takes_part_reads_a_model_and_tags_nothing(self, actor: Person, person: Callable[..., Person]) -> None:
        other = person("ACTOR")
        model_id = trained(actor, other, (0.1,))
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", model_id):
            tag(other, model_id, 0, "paper")
        assert tags(other, model_id) == {1: ["last"], 0: []}

    def test_a_posterior_that_there_is_none_of(self, actor: Person, model_id: str) -> None:
        for chosen in ({}, {"version": 1}, {"tag": "last"}):
            with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "with a SWAG posterior"):
                download(actor, model_id, part=model_pb2.MODEL_PART_POSTERIOR, **chosen)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "MODEL_PART_POSTERIOR") as call:
            download(actor, model_id, part=9)
        assert list(call.details.fields) == ["part"]


def test_versions_come_in_pages_the_newest_first(
    actor: Person, clients: list[Person], person: Callable[..., Person]
) -> None:
    model_id = trained(actor, clients[0], (0.1, 0.2, 0.3, 0.4))
    for reader in (actor, clients[0]):
        pages, token = [], ""
        while True:
            page = versions(reader, model_id, page_size=2, page_token=token)
            pages.append([one.version for one in page.versions])
            assert all(
                dict(one.metrics) == ({"score": one.version / 10} if one.version else {}) for one in page.versions
            )
            token = page.next_page_token
            if not token:
                break
        assert pages == [[4, 3], [2, 1], [0]]
    for field, page, words in (
        ("page_size", {"page_size": -1}, "must not be negative"),
        ("page_token", {"page_token": "nonsense"}, "leave it empty for the first page"),
    ):
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words) as call:
            versions(actor, model_id, **page)
        assert list(call.details.fields) == [field]
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", model_id):
        versions(person("ACTOR"), model_id)


def test_best_moves_to_what_the_selection_prefers(actor: Person, clients: list[Person]) -> None:
    scores = (0.5, 0.9, 0.9, 0.1)
    made = create(actor, clients[0], scores, selection={"metric": "score", "goal": MAXIMIZE})
    best = []
    for event in play(actor, clients[0], made.training_id, scores):
        if event.round_closed.kind == EVALUATE:
            best.append(download(actor, made.model_id, tag="best")[0].version)
    assert best == [1, 2, 2, 2]
    assert not event.training_finished.stopped_early
    after = actor.get(made.training_id)
    assert (after.best_version, after.best_value) == (2, 0.9)
    assert tags(actor, made.model_id) == {4: ["last"], 3: [], 2: ["best"], 1: [], 0: []}


def test_patience_ends_a_training_early(actor: Person, clients: list[Person]) -> None:
    scores = (0.5, 0.4, 0.5, 0.9)
    made = create(actor, clients[0], scores, selection={"metric": "score", "goal": MAXIMIZE, "patience": 2})
    *_, last = play(actor, clients[0], made.training_id, scores)
    assert last.training_finished.stopped_early
    assert last.training_finished.model_version == 3
    assert actor.get(made.training_id).state == training_pb2.TRAINING_STATE_COMPLETED
    assert tags(actor, made.model_id) == {3: ["last"], 2: [], 1: ["best"], 0: []}


def test_old_versions_lose_their_files_unless_they_carry_a_tag(actor: Person, clients: list[Person]) -> None:
    scores = (0.1, 0.9, 0.1, 0.1, 0.1)
    made = create(actor, clients[0], scores, keep_versions=2, selection={"metric": "score", "goal": MAXIMIZE})
    tag(actor, made.model_id, 0, "pinned")
    assert [*play(actor, clients[0], made.training_id, scores)][-1].HasField("training_finished")
    listed = versions(actor, made.model_id).versions
    assert {one.version: (one.stored, list(one.tags)) for one in listed} == {
        5: (True, ["last"]),
        4: (True, []),
        3: (False, []),
        2: (True, ["best"]),
        1: (False, []),
        0: (True, ["pinned"]),
    }
    for one in listed:
        if one.stored:
            info, data = download(actor, made.model_id, version=one.version)
            assert (info.sha256, load(data)["weight"][0, 0]) == (one.sha256, one.version)
            continue
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", f"version {one.version}", "dropped by keep_versions"):
            download(actor, made.model_id, version=one.version)
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", f"version {one.version}", "dropped by keep_versions"):
            tag(actor, made.model_id, one.version, "paper")
