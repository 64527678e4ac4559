"""`fedround training round`: the state of a round."""

from __future__ import annotations

from typing import Annotated

import typer

from fedround.v1.round_pb2 import RejectedUpdate, RoundParticipant
from fedround.v1.training_pb2 import ParticipantFailure
from fedround_client.command import names
from fedround_client.command.output import (
    UINT32,
    Columns,
    Format,
    FormatOption,
    echo,
    show,
    show_all,
    show_fields,
    used,
    when,
)
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import round_lines
from fedround_client.round_number import planned_rounds

_PARTICIPANTS: Columns[RoundParticipant] = {
    "NAME": lambda one: one.name,
    "USER_ID": lambda one: one.user_id,
    "ARRIVED": lambda one: when(one.arrive_time),
    "MISSING SINCE": lambda one: when(one.missing_since_time),
    "LAST SEEN": lambda one: "now" if one.subscribed else when(one.last_seen_time),
    "BYTES": lambda one: one.uploaded_bytes or "",
    "EXPECTED": lambda one: when(one.forecast_arrive_time),
    "REJECTED": lambda one: ", ".join(f"{rejected.reason} {rejected.count}" for rejected in one.rejected_updates),
}
_MORE: Columns[RoundParticipant] = {
    "LEFT OUT": lambda one: one.rounds_left_out or "",
    "ATTRIBUTES": lambda one: ", ".join(f"{name}={value}" for name, value in sorted(one.attributes.items())),
}
_REJECTED_UPDATES: Columns[RejectedUpdate] = {
    "REJECTED": lambda rejected: rejected.reason,
    "COUNT": lambda rejected: rejected.count,
    "LAST": lambda rejected: when(rejected.last_time),
    "MESSAGE": lambda rejected: rejected.message,
}


_REPORTS: Columns[RoundParticipant] = {
    "UPDATE OF": lambda one: one.name,
    "SHARE": lambda one: f"{one.report.share:.4g}" if one.report.HasField("share") else "",
    "NORM": lambda one: f"{one.report.norm:.4g}" if one.report.HasField("norm") else "",
    "COSINE": lambda one: f"{one.report.cosine:.4g}" if one.report.HasField("cosine") else "",
    "RANK": lambda one: one.report.distance_rank or "",
    "SCALE": lambda one: f"{one.report.clip_scale:.4g}" if one.report.HasField("clip_scale") else "",
    "STALENESS": lambda one: str(one.report.staleness) if one.report.HasField("staleness") else "",
    "SELECTED": lambda one: ("yes" if one.report.selected else "no") if one.report.HasField("selected") else "",
}


_FAILURES: Columns[ParticipantFailure] = {
    "FAILED": lambda failure: failure.participant_name,
    "REASON": lambda failure: failure.reason,
    "SINCE": lambda failure: when(failure.fail_time),
    "MESSAGE": lambda failure: failure.message,
}


def round_(
    context: typer.Context,
    training: names.Training,
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="ROUND", min=1, max=UINT32, help="Number of the round, from 1; the current one by default."
        ),
    ] = None,
    option: names.RoundOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Show which rule keeps a round open, which participants are missing or failed, and which updates were rejected.

    Of a round that is done, it also shows what the aggregation found out about each update: its SHARE in the
    aggregate, the NORM of its difference from the round's model, the COSINE of the angle between that and the
    aggregate's, the RANK of its distance to the other updates, what clipping multiplied it by (SCALE), how many
    versions were made since the one that it started from (STALENESS), and whether a robust rule SELECTED it.
    """
    wanted = names.round_number(number, option)
    with client_of(context) as client:
        training_id = names.training_id(client, training)
        found = client.get_round(training_id, wanted)
        if len(found.participants) < found.num_participants:
            participants = list(client.round_participants(training_id, found.number))
            del found.participants[:]
            found.participants.extend(participants)
        if form is Format.JSON:
            show(found, form)
            return
        spec = client.get_training(training_id).spec
    show_fields(round_lines(found, planned_rounds(spec)))
    echo("")
    show_all(found.participants, {**_PARTICIPANTS, **used(_MORE, found.participants)}, form)
    reported = [one for one in found.participants if one.HasField("report")]
    if reported:
        echo("")
        show_all(reported, {"UPDATE OF": _REPORTS["UPDATE OF"], **used(_REPORTS, reported)}, form)
    failures = [one.failure for one in found.participants if one.HasField("failure")]
    if failures:
        echo("")
        show_all(failures, _FAILURES, form)
    if found.rejected_updates:
        echo("")
        show_all(found.rejected_updates, _REJECTED_UPDATES, form)
