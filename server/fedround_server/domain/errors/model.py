"""Errors about models and predictions."""

from fedround_server.domain.errors.family import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)


class ModelNotFound(NotFound):
    """The model or its version does not exist, or the caller has no part in it."""

    reason = "MODEL_NOT_FOUND"
    remedy = "check the id, and which user the token belongs to"
    resource_type = "model"


class ModelDamaged(DataLoss):
    """The server's file of a model is damaged or missing: no wrong byte of it was sent or used."""

    reason = "MODEL_DAMAGED"
    remedy = "the operator restores the file that the message names from a backup; then call again"

    def __init__(self, what: str, file: str, problem: str) -> None:
        super().__init__(
            f"{what} cannot be read: on the server, the file {file} {problem}: the operator has to restore it from a"
            " backup, then call again",
            file=file,
        )


class ModelFormat(InvalidArgument):
    """The file is not an acceptable safetensors file; a pickle, for example."""

    reason = "MODEL_FORMAT"
    remedy = "convert a PyTorch state dict to safetensors on your machine: `fedround convert`"


class ModelInUse(FailedPrecondition):
    """A training that has not ended needs the model."""

    reason = "MODEL_IN_USE"
    remedy = "wait for the training's end, or remove it"


class ArchitectureUnknown(FailedPrecondition):
    """The model names no architecture, or one that is not registered."""

    reason = "ARCHITECTURE_UNKNOWN"
    remedy = "start the server with `--architecture NAME=package.module:factory`, and name it"


class PosteriorMissing(FailedPrecondition):
    """SWAG is asked for, and the version has no posterior."""

    reason = "POSTERIOR_MISSING"
    remedy = "train with uncertainty `swag`; GetModelVersions shows which versions have a posterior"


class PredictionFailed(FailedPrecondition):
    """Model, architecture and method do not fit together: weights of other shapes, no dropout, a factory that fails."""

    reason = "PREDICTION_FAILED"
    remedy = "the message says what does not fit"


class PredictionLimit(ResourceExhausted):
    """A prediction takes more time or memory than the operator allows, or too many are waiting."""

    reason = "PREDICTION_LIMIT"
    remedy = "send fewer inputs, ask for fewer samples, or wait as long as RetryInfo says"
    retry_seconds = 1.0
