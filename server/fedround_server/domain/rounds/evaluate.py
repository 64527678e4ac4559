"""Rounds in which participants report metrics on a new version of the model."""

from dataclasses import replace

from fedround_server.domain.cohort import Cohort
from fedround_server.domain.policy import UNTIL_DEADLINE, RoundPolicy
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
        return spec.evaluation is Evaluation.EVERY_ROUND or last

    def policy(self, spec: TrainingSpec) -> RoundPolicy:
        """Returns the evaluation policy; by default the round policy, without a choice of reporters for a selection."""
        if spec.evaluation_policy is not None:
            return spec.evaluation_policy
        if spec.selection is None:
            return spec.round_policy
        return replace(spec.round_policy, wait_after_min=UNTIL_DEADLINE)

    def cohort(self, spec: TrainingSpec) -> Cohort | None:
        """Returns the training's cohort, but for a selection by default everybody who has the labels."""
        cohort = spec.cohort
        if cohort is None or spec.selection is None or spec.evaluation_policy is not None:
            return cohort
        return replace(cohort, fraction=None, size=None, over_selection=1.0)

    def required_metrics(self, spec: TrainingSpec) -> tuple[str, ...]:
        """Returns the training's metric names."""
        return spec.metric_names

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> kind.Evaluation:
        """Returns that the metrics are those of the version."""
        return kind.Evaluation()
