"""The exceptions that the SDK raises without an error of the server."""

from fedround_client.errors.family import Aborted, FedroundError, Unimplemented

__all__ = ["RemovedFromTraining", "ResponseInvalid", "TrainingFailed", "TrainingRemoved", "UnsupportedRound"]


class UnsupportedRound(Unimplemented, reason="UNSUPPORTED_ROUND"):
    """A round asks for something that this participant cannot do."""


class TrainingFailed(Aborted):
    """The training ended in the state ERROR; the reason and the message are the training's own."""


class TrainingRemoved(Aborted, reason="TRAINING_REMOVED"):
    """The training was removed while the caller took part in it or waited for it."""


class RemovedFromTraining(Aborted, reason="CLIENT_REMOVED"):
    """The caller was removed from a training that it took part in."""


class ResponseInvalid(FedroundError, reason="RESPONSE_INVALID"):
    """The server answered with a message that cannot be decoded, or holds a value that is impossible."""
