"""Errors about rounds, updates and events."""

from fedround_server.domain.errors.family import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
)


class RoundNotFound(NotFound):
    """The training has no such round."""

    reason = "ROUND_NOT_FOUND"
    remedy = "leave `round` unset for the current one"
    resource_type = "round"

    def __init__(self, number: int, training_id: str) -> None:
        super().__init__(
            f"{number} of the training {training_id}",
            # Without the number: people count from 1.
            f"the training {training_id} has no such round yet: check the number",
        )


class RoundNotOpen(FailedPrecondition):
    """The round does not accept this: it is closed, not open yet, or of another kind."""

    reason = "ROUND_NOT_OPEN"
    remedy = "discard the update or report, and wait for the next `round_started`"


class ReplayImpossible(FailedPrecondition):
    """A round cannot be computed once more: it made no version, or a file that it needs is not stored any more."""

    reason = "REPLAY_IMPOSSIBLE"
    remedy = "choose a round that made a version; keep_versions and keep_update_rounds say which files are kept"


class NotInCohort(PermissionDenied):
    """The caller does not belong to the round's cohort."""

    reason = "NOT_IN_COHORT"
    remedy = "wait for the `round_started` of a round that you belong to"


class TensorsMismatch(InvalidArgument):
    """The names of the update's tensors are not those that the round asks for."""

    reason = "TENSORS_MISMATCH"
    remedy = (
        "send every tensor that the training updates, by default all of the model, and no other; `strip_prefix` of the"
        " SDK removes what wrappers put before names"
    )


class AlreadyParticipating(FailedPrecondition):
    """Another program takes part as the same user, in the same training or in all of the user's trainings."""

    reason = "ALREADY_PARTICIPATING"
    remedy = "give each participant a user and a token of its own: `fedround user create`"

    def __init__(self, since: str) -> None:
        super().__init__(
            f"another program, perhaps on another machine, takes part as this user since {since}:"
            " give each participant a user and a token of its own (fedround user create). If that program has lost its"
            " connection or was ended without warning, try again in a minute",
            since=since,
        )


class UpdateMismatch(InvalidArgument):
    """The shapes or dtypes of the update's tensors are not those that the round asks for."""

    reason = "UPDATE_MISMATCH"
    remedy = "send every tensor of the model with its shape and dtype"


class UpdateNotFinite(InvalidArgument):
    """An update or a model contains NaN or infinity."""

    reason = "UPDATE_NOT_FINITE"
    remedy = (
        "the training diverged: lower the learning rate, check the data; for a buffer of the model, such as a mask, set"
        " `allow_non_finite_buffers`"
    )


class UpdateNorm(InvalidArgument):
    """The update is farther from the model that it started from than the training's `max_update_norm`."""

    reason = "UPDATE_NORM"
    remedy = "train fewer steps or with a lower learning rate, or clip the update; the message has both numbers"

    def __init__(self, norm: float, limit: float) -> None:
        super().__init__(
            f"the update is {norm:.6g} away from the model that it started from (L2 norm over all floating tensors),"
            f" and the training allows {limit:.6g}: train fewer steps or with a lower learning rate, or clip it",
            norm=repr(norm),
            limit=repr(limit),
        )


class NumExamples(InvalidArgument):
    """`num_examples` is out of range."""

    reason = "NUM_EXAMPLES"
    remedy = "send 0 to 2^31, or to the training's `max_num_examples`"

    def __init__(self, num_examples: int, highest: int) -> None:
        description = f"must be in 0..{highest}, not {num_examples}"
        super().__init__(f"num_examples: {description}")
        self.field = "num_examples"
        self.description = description


class UpdateExists(AlreadyExists):
    """The participant has submitted another update in the round: another file, `num_examples` or metrics."""

    reason = "UPDATE_EXISTS"
    remedy = "nothing: the first one counts, and gets the same receipt again"


class MetricsExist(AlreadyExists):
    """The participant has submitted other metrics in the round; the same ones are accepted again and count once."""

    reason = "METRICS_EXIST"
    remedy = "nothing: the first ones count"


class UpdateSuperseded(FailedPrecondition):
    """The update or report was accepted, and will not count: its participant was removed, or its round abandoned."""

    reason = "UPDATE_SUPERSEDED"
    remedy = "discard it, and wait for the next `round_started`"


class UpdateStale(FailedPrecondition):
    """Too many versions were made since the one that the update started from (`Aggregation.buffering`)."""

    reason = "UPDATE_STALE"
    remedy = "discard it, and train the model of the newest `round_started`"

    def __init__(self, base_version: int, version: int, max_staleness: int) -> None:
        staleness = version - base_version
        super().__init__(
            f"the update started from version {base_version}, {staleness} versions before version {version}, and the"
            f" training takes updates of at most {max_staleness}: discard it, and go on with the model of the newest"
            " round_started",
            staleness=str(staleness),
            max_staleness=str(max_staleness),
        )


class CursorExpired(OutOfRange):
    """A subscription cannot be resumed after this sequence: the log does not reach it, or no longer has it."""

    reason = "CURSOR_EXPIRED"
    remedy = "subscribe again without a cursor"
