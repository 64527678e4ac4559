"""RejectedUpdates about models and predictions."""

from fedround_server.domain.errors.family import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted


class ModelNotFound(NotFound):
    """No such model for this caller."""

    reason = "MODEL_NOT_FOUND"
    resource_type = "model"


class ModelFormat(InvalidArgument):
    """The file is not an acceptable safetensors file."""

    reason = "MODEL_FORMAT"


class ModelInUse(FailedPrecondition):
    """A training that is not ended needs the model."""

    reason = "MODEL_IN_USE"


class ArchitectureUnknown(FailedPrecondition):
    """The model's architecture is not registered, or it names none."""

    reason = "ARCHITECTURE_UNKNOWN"


class PosteriorMissing(FailedPrecondition):
    """No SWAG posterior was collected around the version."""

    reason = "POSTERIOR_MISSING"


class PredictionFailed(FailedPrecondition):
    """The model, its architecture and the method do not fit together."""

    reason = "PREDICTION_FAILED"


class PredictionLimit(ResourceExhausted):
    """A prediction takes more time or memory than the operator allows, or too many wait."""

    reason = "PREDICTION_LIMIT"
    retry_seconds = 1.0
