"""Use cases about predictions."""

import logging
from dataclasses import dataclass

from fedround_server.blobs import BlobDamaged
from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import (
    ArchitectureUnknown,
    FieldInvalid,
    ModelDamaged,
    PosteriorMissing,
    PredictionFailed,
    PredictionLimit,
    WorkerKilled,
)
from fedround_server.domain.model import POSTERIOR, ModelVersion
from fedround_server.domain.prediction import Array, Prediction
from fedround_server.domain.uncertainty import Ensemble, Swag, Uncertainty, options_of
from fedround_server.engine.executor import WorkerLost
from fedround_server.engine.jobs import PredictionFault, PredictionJob

log = logging.getLogger(__name__)
OUTPUT_LIMIT = 15 << 17
"""Size of an answer's tensors, in bytes: a message has 2 MiB."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be predicted.

    Attributes:
        version: The version; None for the one with the tag, or else the latest.
        uncertainty: None for what the model's training says.
        seed: Makes what is drawn reproducible.
        architecture: Its name; empty for the one that the model names.
    """

    user_id: str
    model_id: str
    version: int | None
    tag: str
    inputs: Array
    uncertainty: Uncertainty | None
    seed: int | None
    architecture: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction, and the version and method that made it."""

    version: ModelVersion
    uncertainty: Uncertainty
    prediction: Prediction


class Inference:
    """Runs predictions, of which a limited number wait for their turn."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._in_progress = 0

    async def predict(self, question: Question) -> Answer:
        """Predicts with a stored model.

        Raises:
            ModelNotFound: There is no such model, or no such version, for the user.
            ArchitectureUnknown: The operator registered no architecture for it.
            PosteriorMissing: SWAG is asked for, and the version has no posterior.
            PredictionFailed: Model, architecture and method do not fit together.
            PredictionLimit: It takes too much time or memory.
            ModelDamaged: The file of a model or of the posterior is damaged.
            FieldInvalid: The inputs do not fit.
        """
        models = self._context.store.models
        version = await models.get_version(question.model_id, question.version, question.user_id, question.tag)
        own, usual = await models.predicts_with(question.model_id, question.user_id)
        architecture = self._architecture(question.architecture or own)
        uncertainty = question.uncertainty or usual
        voters = [version]
        if isinstance(uncertainty, Ensemble):
            voters = await self._voters(question, version, uncertainty)
        posterior = version.artifacts.get(POSTERIOR)
        if isinstance(uncertainty, Swag) and posterior is None:
            raise PosteriorMissing(
                f"version {version.version} has no SWAG posterior: train with uncertainty swag, or choose a version"
                " that GetModelVersions shows with one"
            )
        job = PredictionJob(
            architecture=architecture,
            models=tuple(voter.blob for voter in voters),
            posterior=None if posterior is None else posterior.blob,
            inputs=question.inputs,
            method=uncertainty.name,
            options=options_of(uncertainty),
            seed=question.seed,
        )
        return Answer(version, uncertainty, await self._run(job))

    def _architecture(self, name: str) -> str:
        known = self._context.architectures
        if name in known:
            return known[name]
        what = f"the architecture {name!r} is not registered" if name else "the model names no architecture"
        registered = f"registered are {', '.join(sorted(known))}" if known else "none is registered"
        raise ArchitectureUnknown(
            f"{what}, and {registered}: start the server with --architecture NAME=package.module:factory, and name it"
            " in the request or when the model is created"
        )

    async def _voters(self, question: Question, version: ModelVersion, ensemble: Ensemble) -> list[ModelVersion]:
        """Returns the versions that vote: the requested one or its model's latest ones, and the members named."""
        models = self._context.store.models
        voters = [version]
        last = ensemble.last_versions
        if last:
            page = await models.page_versions(question.model_id, question.user_id, version.version + 1, last)
            voters = [view.version for view in page if view.version.stored]
        for model_id, number in ensemble.members:
            voters.append(await models.get_version(model_id, number, question.user_id))
        return voters

    async def _run(self, job: PredictionJob) -> Prediction:
        if self._in_progress >= self._context.limits.max_predictions:
            raise PredictionLimit(f"{self._in_progress} predictions wait already: try again")
        self._in_progress += 1
        try:
            prediction = await self._context.engine.predict(job)
        except TimeoutError:
            raise PredictionLimit(
                "the prediction takes longer than the operator allows: send fewer inputs, ask for fewer samples",
                limit="predict_seconds",
            ) from None
        except PredictionFault as error:
            raise _to_error(error) from None
        except BlobDamaged as error:
            log.error("%s", error)
            raise ModelDamaged("a file that the prediction needs", error.file, error.problem) from error
        except (WorkerLost, WorkerKilled) as error:
            raise PredictionFailed(f"{error}: it needs too much memory, or the architecture ends its process") from None
        finally:
            self._in_progress -= 1
        size = sum(len(array.data) for array in _arrays(prediction))
        if size > OUTPUT_LIMIT:
            raise FieldInvalid(
                "inputs", f"would be answered with {size} bytes, the limit is {OUTPUT_LIMIT}: send fewer"
            )
        return prediction


def _arrays(prediction: Prediction) -> tuple[Array, ...]:
    return (prediction.mean, *(prediction.spread or ()), *(prediction.entropies or ()))


def _to_error(error: PredictionFault) -> FieldInvalid | PredictionFailed | PredictionLimit:
    if error.fault == "inputs":
        return FieldInvalid("inputs", error.message)
    if error.fault == "memory":
        return PredictionLimit(f"{error.message}: send fewer inputs", limit="predict_bytes")
    return PredictionFailed(error.message)
