"""RejectedUpdates about rounds and what is submitted in them."""

from fedround_server.domain.errors.family import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)


class RoundNotFound(NotFound):
    """The training has no such round."""

    reason = "ROUND_NOT_FOUND"
    resource_type = "round"


class RoundNotOpen(FailedPrecondition):
    """The round is not open: late, early, of another kind, or of another number."""

    reason = "ROUND_NOT_OPEN"


class NotInCohort(PermissionDenied):
    """The caller does not belong to the round's cohort."""

    reason = "NOT_IN_COHORT"


class UpdateMismatch(InvalidArgument):
    """An update's tensors are not those that the round asks for."""

    reason = "UPDATE_MISMATCH"


class UpdateNotFinite(InvalidArgument):
    """An update, a model or a metric contains NaN or Inf."""

    reason = "UPDATE_NOT_FINITE"


class UpdateNorm(InvalidArgument):
    """An update is farther from the model that it started from than the training allows."""

    reason = "UPDATE_NORM"

    def __init__(self, norm: float, limit: float) -> None:
        super().__init__(
            f"the update is {norm:.6g} away from the model that it started from (L2 norm over all floating tensors),"
            f" and the training allows {limit:.6g}: train fewer steps or with a lower learning rate, or clip it",
            norm=repr(norm),
            limit=repr(limit),
        )


class NumExamples(InvalidArgument):
    """num_examples is out of bounds."""

    reason = "NUM_EXAMPLES"

    def __init__(self, num_examples: int, highest: int) -> None:
        description = f"must be in 1..{highest}, not {num_examples}"
        super().__init__(f"num_examples: {description}")
        self.field = "num_examples"
        self.description = description


class UpdateExists(AlreadyExists):
    """The participant has submitted another update for the round."""

    reason = "UPDATE_EXISTS"


class MetricsExist(AlreadyExists):
    """The participant has reported for the round."""

    reason = "METRICS_EXIST"
