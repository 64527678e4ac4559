"""Pages that show trainings, rounds, versions, users and the server. None of them changes anything."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from starlette.responses import Response

from fedround.v1.round_pb2 import Round, RoundParticipant
from fedround.v1.training_pb2 import TRAINING_STATE_INITIAL, Training, TrainingSpec
from fedround_client.command.aggregation import aggregation_text
from fedround_client.command.config_options import config_text
from fedround_client.dashboard.feed import Live
from fedround_client.dashboard.participants import ParticipantMemory
from fedround_client.dashboard.reader import MAX_FILTERED, ROWS, Reader, matches
from fedround_client.dashboard.server_status import server_status
from fedround_client.dashboard.steering import available_actions, done_text
from fedround_client.dashboard.web import Visit, Web, parse_number
from fedround_client.dashboard.words import (
    ENDED,
    has_figure,
    participant_state,
    results,
    seconds_between,
    training_state,
)
from fedround_client.errors import FedroundError, NotActor, NotFound, Unauthenticated
from fedround_client.round_number import planned_rounds

PANEL_ROWS = 12
"""Participants that the panel of the open round names."""
STATES = ("failed", "not connected", "working", "uploading", "arrived", "absent", "nothing sent")


class Pages:
    """The handlers of pages."""

    def __init__(self, web: Web) -> None:
        """Creates the handlers.

        Args:
            web: What the pages share.
        """
        self._web = web
        self._memory = ParticipantMemory()

    def trainings(self, visit: Visit) -> Response:
        """Returns the list of trainings."""
        page = visit.read.trainings(visit.query("page"))
        return self._web.page(
            visit,
            "trainings.html",
            trainings=page.trainings,
            next_page=page.next_page_token,
            is_first=not visit.query("page"),
            planned=planned_rounds,
        )

    def training(self, visit: Visit) -> Response:
        """Returns what a training is doing."""
        training = self._training(visit)
        return self._tab(
            visit,
            training,
            "training.html",
            current=current_round(visit.read, training),
            aggregation=aggregation_text(training.spec.aggregation),
            is_over=training.state in ENDED,
        )

    def participants(self, visit: Visit) -> Response:
        """Returns the participants of the current round; before the start, those that are registered."""
        training = self._training(visit)
        if training.state != TRAINING_STATE_INITIAL:
            return self._participants(visit, training, None)
        begin = parse_number(visit.query("page")) or 0
        ids = training.participant_ids[begin : begin + ROWS]
        names = {user_id: _name(visit, user_id) if visit.account.may_list_users else "" for user_id in ids}
        following = str(begin + ROWS) if begin + ROWS < len(training.participant_ids) else ""
        return self._tab(visit, training, "registered.html", names=names, next_page=following, is_first=not begin)

    def round(self, visit: Visit) -> Response:
        """Returns a round with its participants."""
        return self._participants(visit, self._training(visit), visit.number("round"))

    def _participants(self, visit: Visit, training: Training, number: int | None) -> Response:
        text, state, page = visit.query("q").strip(), visit.query("state"), visit.query("page")
        shown = training.round if number is None else number
        if text or state in STATES:
            found = visit.read.round(training.training_id, shown, page_size=1).round
            selected = self._matching(visit.read, found, text, state)
            participants, is_cut = selected[:MAX_FILTERED], len(selected) > MAX_FILTERED
            following = ""
        else:
            answer = visit.read.round(training.training_id, shown, page_token=page)
            found, following = answer.round, answer.next_page_token
            # A server that does not know pages sends all participants at once.
            participants, is_cut = list(found.participants[: 2 * ROWS]), len(found.participants) > 2 * ROWS
        return self._tab(
            visit,
            training,
            "participants.html",
            is_current=number is None,
            round=found,
            participants=participants,
            is_cut=is_cut,
            next_page=following,
            is_first=not page,
            this_page=page,
            text=text,
            state=state,
            states=STATES,
            columns=report_columns(participants),
        )

    def _matching(self, reader: Reader, current: Round, text: str, state: str) -> list[RoundParticipant]:
        """Returns the participants that match a filter, as many as are shown and one more."""
        found = (
            one
            for one in self._memory.participants(reader, current)
            if matches(text, one.name, one.user_id) and state in ("", participant_state(one, current.state)[0])
        )
        return list(islice(found, MAX_FILTERED + 1))

    def rounds(self, visit: Visit) -> Response:
        """Returns a page of the rounds of a training."""
        training = self._training(visit)
        page = visit.read.rounds(training.training_id, visit.query("page"))
        return self._tab(
            visit,
            training,
            "rounds.html",
            rounds=page.rounds,
            next_page=page.next_page_token,
            is_first=not visit.query("page"),
            seconds_between=seconds_between,
        )

    def versions(self, visit: Visit) -> Response:
        """Returns a page of the versions of a training's model, with their lineage."""
        training = self._training(visit)
        model = visit.read.model(training.model_id)
        page = visit.read.versions(training.model_id, visit.query("page"))
        return self._tab(
            visit,
            training,
            "versions.html",
            model=model,
            versions=page.versions,
            next_page=page.next_page_token,
            is_first=not visit.query("page"),
        )

    def version(self, visit: Visit) -> Response:
        """Returns the updates that a version was made of: what the ledger has."""
        training = self._training(visit)
        number = visit.number("version")
        page = visit.read.contributions(training.model_id, number, visit.query("page"))
        return self._tab(
            visit,
            training,
            "version.html",
            number=number,
            origin=page.origin,
            aggregation=aggregation_text(page.origin.aggregation) if page.origin.HasField("aggregation") else "",
            contributions=page.contributions,
            next_page=page.next_page_token,
            is_first=not visit.query("page"),
        )

    def configuration(self, visit: Visit) -> Response:
        """Returns the spec of a training."""
        training = self._training(visit)
        spec = TrainingSpec()
        spec.CopyFrom(training.spec)
        # There may be 10,000: the participants have a page of their own.
        spec.ClearField("client_ids")
        return self._tab(
            visit,
            training,
            "configuration.html",
            aggregation=aggregation_text(spec.aggregation),
            config=config_text(spec.config),
            spec=as_json(spec),
        )

    def users(self, visit: Visit) -> Response:
        """Returns a page of the users; for admins and actors."""
        text, page = visit.query("q").strip(), visit.query("page")
        if text:
            selected = list(islice(visit.read.matching_users(text), MAX_FILTERED + 1))
            users, following, is_cut = selected[:MAX_FILTERED], "", len(selected) > MAX_FILTERED
        else:
            answer = visit.read.users(page)
            users, following, is_cut = list(answer.users), answer.next_page_token, False
        shown: dict[str, Any] = {
            "users": users,
            "next_page": following,
            "is_first": not page,
            "is_cut": is_cut,
            "text": text,
        }
        return self._web.page(visit, "users.html", done=done_text(visit.query("done")), **shown)

    def server(self, visit: Visit) -> Response:
        """Returns what the server is doing; for admins and viewers."""
        return self._web.page(visit, "server.html", now=server_status(visit.account.client))

    def _training(self, visit: Visit) -> Training:
        return visit.read.training(visit.path("training_id"))

    def _tab(self, visit: Visit, training: Training, template: str, **values: Any) -> Response:
        """Returns a page about a training."""
        return self._web.page(
            visit,
            template,
            training=training,
            planned=planned_rounds(training.spec),
            actions=available_actions(training, visit.account),
            done=done_text(visit.query("done")),
            **values,
        )

    def live_training(self, reader: Reader, training_id: str, num_events: int) -> Live:
        """Returns the live parts of the pages about a training.

        Args:
            reader: Calls the server.
            training_id: UUID of the training.
            num_events: How many events of the training were seen.
        """
        training = reader.training(training_id)
        current = current_round(reader, training)
        shared: dict[str, Any] = {"training": training, "planned": planned_rounds(training.spec), "current": current}
        shared["actions"] = available_actions(training, reader.account)
        counts = () if current is None else (current.updates_arrived, current.num_failed, current.num_connected)
        return Live(
            fragments={
                "training-state": self._web.text("_state.html", **shared),
                "training-actions": self._web.text("_actions.html", **shared),
                "round-now": self._web.text("_round.html", **shared),
            },
            stamps={
                "participants": f"{training.round} {training.num_participants} {counts}",
                "rounds": f"{training.round} {training.round_closed} {training.state}",
                "versions": f"{training.model_version} {training.round} {training.round_closed} {training.state}",
            },
            says=_says(training, current),
            is_over=training.state in ENDED,
        )


def live_trainings(reader: Reader, num_events: int) -> Live:
    """Returns the live part of the list of trainings: it is asked for anew after each event."""
    newest = reader.trainings().trainings[:1]
    return Live(stamps={"trainings": f"{num_events} {newest[0].training_id if newest else ''}"})


def current_round(reader: Reader, training: Training) -> Round | None:
    """Returns the current round with the first of its participants; None before the start, and for participants."""
    if training.state == TRAINING_STATE_INITIAL:
        return None
    try:
        return reader.round(training.training_id, page_size=PANEL_ROWS).round
    except (NotActor, NotFound):
        return None


def report_columns(participants: Iterable[RoundParticipant]) -> list[str]:
    """Returns what the aggregation found out about at least one of some updates."""
    names = ("share", "norm", "cosine", "distance_rank", "clip_scale", "staleness", "selected")
    reports = [one.report for one in participants if one.HasField("report")]
    return [name for name in names if any(has_figure(report, name) for report in reports)]


def as_json(message: Message) -> str:
    """Returns a message as protobuf JSON for people."""
    return MessageToJson(message, preserving_proto_field_name=True, indent=2, ensure_ascii=False)


def _name(visit: Visit, user_id: str) -> str:
    """Returns the name of a user; empty if the visitor may not see it."""
    try:
        return visit.read.user(user_id).name
    except Unauthenticated:
        raise
    except FedroundError:
        return ""


def _says(training: Training, current: Round | None) -> str:
    """Returns the state of a training in a sentence, for those who do not see it."""
    state, _ = training_state(training)
    if training.state in ENDED:
        return f"The training is {state}, at version {training.model_version}. {training.error.message}".strip()
    if current is None:
        return f"The training is {state}."
    noun = results(current.kind)
    return (
        f"Round {current.number + 1}, {state}: {current.updates_arrived} of {current.updates_expected} {noun} have"
        f" arrived, {current.num_failed} failed."
    )
