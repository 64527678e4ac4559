"""Verbs about events: what a subscriber may read of the logs of trainings."""

from collections.abc import Collection, Mapping, Sequence

from fedround_server.domain.errors import CursorExpired, FedroundError, TrainingNotFound
from fedround_server.store.db.run import Verbs, batched, verb
from fedround_server.store.queries.event_log import LogPage, LogReader, find_start, read_logs
from fedround_server.store.queries.log_view import LogView, find_open_views, find_views


class EventVerbs(Verbs):
    """Verbs about events."""

    @verb
    def views(self, user_id: str, training_ids: Collection[str]) -> list[LogView]:
        """Returns a user's views of trainings, also of those that it has left or that are removed.

        Raises:
            TrainingNotFound: The user never took part in one of them.
        """
        wanted = sorted(set(training_ids))
        found = find_views((training_id, user_id) for training_id in wanted)
        for training_id in wanted:
            if (training_id, user_id) not in found:
                raise TrainingNotFound(training_id)
        return [found[training_id, user_id] for training_id in wanted]

    @verb
    def open_views(self, user_id: str) -> list[LogView]:
        """Returns a user's views of all running trainings that it steers or takes part in."""
        return find_open_views(user_id)

    @batched
    def poll(self, asked: Sequence[tuple[str, str, int | None, int]]) -> list[LogPage | FedroundError]:
        """Reads on after a cursor (training, user, cursor, limit). Thousands of subscribers ask this at once.

        Without a cursor, the first event shows the present situation: the start of the current round, or the end of the
        training.

        Raises:
            TrainingNotFound: The user never took part in the training.
            CursorExpired: The log ends before the cursor.
        """
        return _poll(asked)

    @verb
    def poll_all(
        self, training_id: str, readers: Sequence[tuple[str, int]], limit: int
    ) -> list[LogPage | FedroundError]:
        """Reads on after the cursors of many readers (user, cursor) of one log; what `poll` raises is returned."""
        return _poll([(training_id, user_id, cursor, limit) for user_id, cursor in readers])


def _poll(asked: Sequence[tuple[str, str, int | None, int]]) -> list[LogPage | FedroundError]:
    # The last event of a view is in the log before the view is marked as ended: so views are read first.
    views = find_views((training_id, user_id) for training_id, user_id, _, _ in asked)
    begun = [_begin(views, *question) for question in asked]
    pages = iter(read_logs([one for one in begun if isinstance(one, LogReader)]))
    return [next(pages) if isinstance(one, LogReader) else one for one in begun]


def _begin(
    views: Mapping[tuple[str, str], LogView], training_id: str, user_id: str, cursor: int | None, limit: int
) -> LogReader | LogPage | FedroundError:
    """Returns a reader if there is something new after a cursor, else the answer."""
    view = views.get((training_id, user_id))
    if view is None:
        return TrainingNotFound(training_id)
    if cursor is None:
        cursor = find_start(view, user_id)
    if cursor > view.last_sequence:
        return CursorExpired(
            f"resume_after_sequence {cursor} lies behind the end of the log ({view.last_sequence}) of the training"
            f" {training_id}: subscribe without it to start at the current round"
        )
    if cursor == view.last_sequence:
        return LogPage(view, (), cursor)
    return LogReader(view, user_id, cursor, limit)
