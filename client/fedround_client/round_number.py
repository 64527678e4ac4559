"""Numbers of rounds for people: the first round is round 1. The API's `round` fields count from 0."""

from __future__ import annotations

from fedround.v1.training_pb2 import EVALUATION_EVERY_ROUND, EVALUATION_FINAL_ONLY, TrainingSpec


def round_text(number: int, planned: int | None = None) -> str:
    """Returns how people call a round, such as "round 3 of 20".

    Args:
        number: The API's number of the round, from 0.
        planned: How many rounds the training has, if that is known.
    """
    return f"round {number + 1}" + (f" of {planned}" if planned else "")


def planned_rounds(spec: TrainingSpec) -> int:
    """Returns how many rounds a training has until its target, of all kinds; fewer if it stops early.

    Args:
        spec: The stored spec of the training, with defaults filled in.
    """
    versions = spec.target_num_updates
    fed_dc = spec.aggregation.fed_dc
    rounds = versions * max(1, fed_dc.aggregation_period // max(1, fed_dc.daisy_period))
    if spec.metric_names and spec.evaluation == EVALUATION_EVERY_ROUND:
        # Without updates, the version that it starts from is evaluated.
        rounds += versions or 1
    elif spec.metric_names and spec.evaluation == EVALUATION_FINAL_ONLY:
        rounds += 1
    if spec.uncertainty.HasField("swag"):
        # Also after the last version, unless that is one of those with a SWAG round anyway.
        every = spec.uncertainty.swag.every
        rounds += -(-versions // every) if every else 1
    return rounds
