"""Verbs about events: what a subscriber may read of the logs. Many subscribers ask at once."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peewee import JOIN, Expression, ModelSelect, Query, fn

from fedround_server.domain.errors import CursorExpired, FedroundError, TrainingNotFound
from fedround_server.domain.event import Event
from fedround_server.store.db.compiled import compiled_values, in_array
from fedround_server.store.db.run import Database, batched
from fedround_server.store.queries.event_log import Part, Reader, hand_out, tell
from fedround_server.store.tables.mapping import ENDED
from fedround_server.store.tables.schema import EventRow, ParticipantRow, TrainingRow


@dataclass(frozen=True, slots=True)
class EventVerbs:
    """What the store does with events. These are joint verbs: a call asks one question, a transaction answers many."""

    database: Database

    @batched
    def part(self, asked: Sequence[tuple[str, str]]) -> list[Part | FedroundError]:
        """Returns what a user may read of a training (training, user), like `parts`.

        Raises:
            TrainingNotFound: The user never had a part in it.
        """
        found = _parts(asked)
        return [found.get(pair) or TrainingNotFound(pair[0]) for pair in asked]

    @batched
    def parts(self, asked: Sequence[tuple[str, Collection[str]]]) -> list[list[Part] | FedroundError]:
        """Returns what a user may read of trainings (user, trainings), also of those it has left or that were removed.

        Raises:
            TrainingNotFound: The user never had a part in one of them.
        """
        found = _parts([(training_id, user_id) for user_id, training_ids in asked for training_id in training_ids])

        def answer(user_id: str, training_ids: Collection[str]) -> list[Part] | FedroundError:
            wanted = sorted(set(training_ids))
            for training_id in wanted:
                if (training_id, user_id) not in found:
                    return TrainingNotFound(training_id)
            return [found[training_id, user_id] for training_id in wanted]

        return [answer(*one) for one in asked]

    @batched
    def open_parts(self, asked: Sequence[tuple[str]]) -> list[list[Part] | FedroundError]:
        """Returns what a user may read of all the trainings that it has a part in and that are not over."""
        user_ids = {user_id for (user_id,) in asked}
        found: dict[str, list[Part]] = {user_id: [] for user_id in user_ids}
        for user_id, part in _taken(_open.all(user_ids), user_ids):
            found[user_id].append(part)
        return [list(found[user_id]) for (user_id,) in asked]

    @batched
    def start(self, asked: Sequence[tuple[Part, str, int | None]]) -> list[int | FedroundError]:
        """Returns the cursor that a subscription starts behind (part, user, where to resume).

        Without a position to resume at, the subscriber gets the current round (or the end) as the log tells it.

        Raises:
            CursorExpired: The log does not reach the position.
        """
        told = {index: Reader(part, user_id, 1) for index, (part, user_id, after) in enumerate(asked) if after is None}
        for readers in _grouped(told.values()).values():
            hand_out(readers, min(reader.part.after for reader in readers), backwards=True)

        def answer(index: int, part: Part, resume_after: int | None) -> int | FedroundError:
            if resume_after is None:
                found = told[index].found
                return max(part.after, (found[0].sequence if found else 1) - 1)
            if resume_after > part.last_sequence:
                return CursorExpired(
                    f"resume_after_sequence {resume_after} lies behind the end of the log ({part.last_sequence}) of"
                    f" the training {part.training_id}: subscribe without it to start at the current round"
                )
            return max(resume_after, part.after)

        return [answer(index, part, after) for index, (part, _, after) in enumerate(asked)]

    @batched
    def read(self, asked: Sequence[tuple[Part, str, int, int]]) -> list[tuple[list[Event], int]]:
        """Reads on behind a cursor (part, user, cursor, limit).

        Returns:
            The events that the user may see, and the cursor behind everything that was looked at.
        """
        return _read(asked)

    @batched
    def news(self, asked: Sequence[tuple[str, str, int, int]]) -> list[tuple[Part, list[Event], int] | FedroundError]:
        """Like `part` and `read` together (training, user, cursor, limit).

        That is what a subscriber to one training asks when it is woken.

        Raises:
            TrainingNotFound: The user never had a part in the training.
        """
        # What ends a part is in the log before the part says so: the parts first.
        parts = _parts((training_id, user_id) for training_id, user_id, _, _ in asked)
        behind = {
            index: (part, user_id, cursor, limit)
            for index, (training_id, user_id, cursor, limit) in enumerate(asked)
            if (part := parts.get((training_id, user_id))) is not None and part.last_sequence > cursor
        }
        found = dict(zip(behind, _read(list(behind.values())), strict=True))

        def answer(index: int, pair: tuple[str, str], cursor: int) -> tuple[Part, list[Event], int] | FedroundError:
            part = parts.get(pair)
            return TrainingNotFound(pair[0]) if part is None else (part, *found.get(index, ([], cursor)))

        return [
            answer(index, (training_id, user_id), cursor)
            for index, (training_id, user_id, cursor, _) in enumerate(asked)
        ]


def _grouped(readers: Iterable[Reader]) -> dict[tuple[str, bool], list[Reader]]:
    groups = defaultdict(list)
    for reader in readers:
        groups[reader.part.training_id, reader.part.is_actor].append(reader)
    return groups


def _read(asked: Sequence[tuple[Part, str, int, int]]) -> list[tuple[list[Event], int]]:
    readers = [Reader(part, user_id, limit) for part, user_id, _, limit in asked]
    after = {reader: max(cursor, part.after) for reader, (part, _, cursor, _) in zip(readers, asked, strict=True)}
    # A training's sequences are committed in order, so all up to the top can be read.
    tops = {training_id: _top(training_id) for training_id in {part.training_id for part, *_ in asked}}
    events: dict[Reader, list[Event]] = {}
    for (training_id, _), of_one in _grouped(readers).items():
        by_cursor = defaultdict(list)
        for reader in of_one:
            by_cursor[after[reader]].append(reader)
        for cursor, some in by_cursor.items():
            hand_out(some, cursor, tops[training_id])
            events.update(zip(some, tell(some), strict=True))

    def answer(reader: Reader, cursor: int) -> tuple[list[Event], int]:
        found = events[reader]
        return found, found[-1].sequence if reader.is_full else max(cursor, tops[reader.part.training_id])

    return [answer(reader, cursor) for reader, (_, _, cursor, _) in zip(readers, asked, strict=True)]


def _top(training_id: str) -> int:
    return _last.all(training_id)[0][0] or 0


@compiled_values
def _last(training_id: str) -> Query:
    return EventRow.select(fn.MAX(EventRow.sequence)).where(EventRow.training_id == training_id)


def _parts(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Part]:
    """Returns those parts that there are, of pairs of trainings and users."""
    users_of, trainings_of = defaultdict(set), defaultdict(set)
    for training_id, user_id in pairs:
        users_of[training_id].add(user_id)
        trainings_of[user_id].add(training_id)
    found: dict[tuple[str, str], Part] = {}
    # Many users ask about one training, or one user about many: one query for each of what there is less of.
    looks: Iterable[tuple[Collection[str], Collection[str]]]
    if len(users_of) <= len(trainings_of):
        looks = [([training_id], user_ids) for training_id, user_ids in users_of.items()]
    else:
        looks = [(training_ids, [user_id]) for user_id, training_ids in trainings_of.items()]
    for training_ids, user_ids in looks:
        for user_id, part in _taken(_some.all(training_ids, user_ids), user_ids):
            found[part.training_id, user_id] = part
    return found


@compiled_values
def _some(training_ids: Collection[str], user_ids: Collection[str]) -> Query:
    return _rows(in_array(ParticipantRow.user_id, user_ids)).where(in_array(TrainingRow.training_id, training_ids))


@compiled_values
def _open(user_ids: Collection[str]) -> Query:
    present = in_array(ParticipantRow.user_id, user_ids) & ParticipantRow.remove_time.is_null()
    taking_part = ParticipantRow.select(ParticipantRow.training_id).where(present)
    steered = TrainingRow.alias()
    steering = steered.select(steered.training_id).where(in_array(steered.actor_id, user_ids))
    return _rows(present).where(
        # PostgreSQL has no index for an OR of two tables.
        TrainingRow.training_id.in_(taking_part | steering),
        TrainingRow.state.not_in(ENDED),
        TrainingRow.remove_time.is_null(),
    )


def _rows(theirs: Expression) -> "ModelSelect[TrainingRow]":
    """Finds trainings with those of their participants that count.

    One query tells of the training and the participant: else a part could be told to have ended before the log has it.
    """
    return TrainingRow.select(
        TrainingRow.training_id,
        TrainingRow.actor_id,
        TrainingRow.state,
        TrainingRow.remove_time,
        TrainingRow.last_sequence,
        ParticipantRow.user_id,
        ParticipantRow.after_sequence,
        ParticipantRow.until_sequence,
    ).join(ParticipantRow, JOIN.LEFT_OUTER, on=((ParticipantRow.training_id == TrainingRow.training_id) & theirs))


def _taken(rows: Iterable[tuple[Any, ...]], user_ids: Collection[str]) -> Iterator[tuple[str, Part]]:
    """Makes the parts of users of what `_rows` found."""
    wanted, steered = frozenset(user_ids), set()
    for training_id, actor_id, state, remove_time, last_sequence, user_id, after, until in rows:
        over = remove_time is not None or state in ENDED
        if actor_id in wanted and training_id not in steered:
            steered.add(training_id)
            yield actor_id, Part(training_id, True, 0, None, last_sequence, over)
        if user_id not in (None, actor_id):
            yield user_id, Part(training_id, False, after, until, last_sequence, over or until is not None)
