"""Metrics that are no numbers are kept for the actor, by raw calls; and there may be a thousand of them."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from calls import TIMEOUT, Person, fails_with, model_file, until
from fedround.v1 import event_pb2, model_pb2, round_pb2
from fedround_server.services.fields import MAX_KEPT_BYTES, MAX_METRICS

List = event_pb2.MetricList


def begin(actor: Person, clients: list[Person], **spec: Any) -> Any:
    return actor.start(actor.create(client_ids=[client.user_id for client in clients], **spec).training_id)


def reports(person: Person, model_id: str, page_size: int = 0) -> list[model_pb2.MetricReport]:
    request, found = model_pb2.GetMetricsRequest(model_id=model_id, page_size=page_size), []
    while True:
        answer = person.models.GetMetrics(request, timeout=TIMEOUT)
        found += answer.reports
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


def wait_for_round(actor: Person, training_id: str, number: int) -> None:
    until(lambda: actor.get(training_id).round == number)


def finish(actor: Person, training_id: str) -> None:
    events = actor.subscribe(training_id, resume_after_sequence={training_id: 0})
    assert [event for event in events if event.HasField("training_finished")]


def test_texts_and_lists_are_kept_and_numbers_are_averaged(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2])
    recall = [0.25, math.nan, math.inf]
    for number, client in enumerate(clients[:2]):
        client.submit(
            training.training_id,
            model_file(number),
            metrics={"loss": number},
            text_metrics={"note": f"é {number}"},
            list_metrics={"recall": List(values=recall), "none": List()},
        )
    finish(actor, training.training_id)
    mean, *each = reports(actor, training.model_id)
    assert (dict(mean.metrics), dict(mean.text_metrics), dict(mean.list_metrics)) == ({"loss": 0.5}, {}, {})
    notes = {one.reporter_id: dict(one.text_metrics) for one in each}
    assert notes == {client.user_id: {"note": f"é {number}"} for number, client in enumerate(clients[:2])}
    assert [str(value) for value in each[0].list_metrics["recall"].values] == ["0.25", "nan", "inf"]
    assert "none" in each[0].list_metrics
    # Only the actor sees what others report.
    assert [one.reporter_id for one in reports(clients[0], training.model_id)] == ["", clients[0].user_id]


@pytest.mark.parametrize("page_size", [1, 50])
def test_a_round_with_nothing_to_average_is_shown(actor: Person, clients: list[Person], page_size: int) -> None:
    training = begin(actor, clients[:1], target_num_updates=3)
    for number in range(3):
        wait_for_round(actor, training.training_id, number)
        metrics = {"text_metrics": {"note": "text"}} if number < 2 else {"metrics": {"loss": 1}}
        clients[0].submit(training.training_id, model_file(number), number, **metrics)
    finish(actor, training.training_id)
    found = [(one.round, dict(one.text_metrics)) for one in reports(actor, training.model_id, page_size)]
    note = {"note": "text"}
    assert found == [(0, {}), (0, note), (1, {}), (1, note), (2, {}), (2, {})]


def test_an_evaluation_reports_numbers_for_the_metrics_of_the_training(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], metric_names=["loss"])
    clients[0].submit(training.training_id, model_file(1))
    report = round_pb2.SubmitMetricsRequest(training_id=training.training_id, round=1, num_examples=1)
    report.text_metrics["loss"] = "low"
    wait_for_round(actor, training.training_id, 1)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "asks for loss too, as numbers"):
        clients[0].rounds.SubmitMetrics(report, timeout=TIMEOUT)
    del report.text_metrics["loss"]
    report.metrics["loss"] = 0.5
    report.text_metrics["note"] = "low"
    for _ in range(2):  # The same report counts once.
        clients[0].rounds.SubmitMetrics(report, timeout=TIMEOUT)
    report.text_metrics["note"] = "lower"
    with fails_with("ALREADY_EXISTS", "METRICS_EXIST", "they stand"):
        clients[0].rounds.SubmitMetrics(report, timeout=TIMEOUT)
    finish(actor, training.training_id)
    assert reports(actor, training.model_id)[-1].text_metrics["note"] == "low"


def test_a_thousand_metrics_are_averaged(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2])
    names = [f"{number:0100}" for number in range(MAX_METRICS)]
    for value, client in enumerate(clients[:2]):
        client.submit(training.training_id, model_file(value), metrics=dict.fromkeys(names, value))
    finish(actor, training.training_id)
    found = reports(actor, training.model_id)
    assert [len(one.metrics) for one in found] == [MAX_METRICS] * 3
    assert set(found[0].metrics.values()) == {0.5}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"metrics": {f"m{number}": 1 for number in range(MAX_METRICS + 1)}}, ["1001 entries; at most 1000"]),
        (
            {"metrics": {f"m{number}": 1 for number in range(MAX_METRICS)}, "text_metrics": {"note": ""}},
            ["1001 entries"],
        ),
        ({"text_metrics": {"note": "x" * 1001}}, ["text_metrics", "1001 characters"]),
        ({"text_metrics": {"note": "\0"}}, ["text_metrics", "NUL"]),
        ({"text_metrics": {"": "text"}}, ["metrics", "required"]),
        ({"list_metrics": {"recall": List(values=[0] * 1001)}}, ["list_metrics['recall']", "at most 1000"]),
        ({"list_metrics": {"x" * 101: List()}}, ["101 characters"]),
        (
            {"list_metrics": {f"m{number}": List(values=[0] * 1000) for number in range(9)}},
            [f"72000 bytes together; at most {MAX_KEPT_BYTES}"],
        ),
        ({"metrics": {"loss": 1}, "text_metrics": {"loss": "low"}}, ["has a name that text_metrics"]),
    ],
)
@pytest.mark.parametrize("submit", ["update", "report"])
def test_metrics_beyond_a_limit_are_rejected(
    actor: Person, clients: list[Person], metrics: dict[str, Any], words: list[str], submit: str
) -> None:
    training_id = begin(actor, clients[:1]).training_id
    report = round_pb2.SubmitMetricsRequest(training_id=training_id, num_examples=1, **metrics)
    calls: dict[str, Callable[[], object]] = {
        "update": lambda: clients[0].submit(training_id, model_file(1), **metrics),
        "report": lambda: clients[0].rounds.SubmitMetrics(report, timeout=TIMEOUT),
    }
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", *words):
        calls[submit]()
    assert actor.get(training_id).updates_arrived == 0
