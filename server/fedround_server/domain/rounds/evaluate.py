"""Rounds in which participants report metrics on a new version of the model."""

from fedround_server.domain.rounds import kind
from fedround_server.domain.training import Evaluation, TrainingSpec
from fedround_server.domain.update import Submission


class Evaluate(kind.RoundKind):
    """A round of evaluation."""

    name = "EVALUATE"
    public_name = "EVALUATE"
    submission = Submission.REPORT

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        """Returns whether a version is evaluated: a training without metric names has nothing to ask for."""
        if not spec.metric_names or spec.evaluation is Evaluation.NEVER:
            return False
        return spec.evaluation is Evaluation.EVERY_ROUND or model_version >= spec.target_num_updates

    def required_metrics(self, spec: TrainingSpec) -> tuple[str, ...]:
        """Returns the training's metric names."""
        return spec.metric_names

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> kind.Evaluation:
        """Returns that the metrics are those of the version."""
        return kind.Evaluation()
