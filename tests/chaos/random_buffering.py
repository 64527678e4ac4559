"""Asynchronous trainings among the random ones, drawn from a seed apart from the training itself."""

import random

from fedround.v1 import aggregation_pb2, training_pb2

LONE = ("median", "geometric_median", "centered_clipping")
"""Rules for which one update is enough: a round that waits for participants would keep the driver waiting, too."""


class RandomBuffering:
    """Whether a training is asynchronous, with which options, and how slow its participants are."""

    def __init__(self, seed: str, often: float) -> None:
        """Draws it; `often` is how often a training is asynchronous."""
        self._draw = random.Random(f"buffering {seed}")
        self.is_used = self._draw.random() < often

    def more_people(self) -> int:
        """Returns how many more participants the training has."""
        return self._draw.randint(1, 2) if self.is_used else 0

    def is_slow(self) -> bool:
        """Returns whether a participant does not submit before the next event."""
        return self._draw.random() < 0.5

    def configure(self, spec: training_pb2.TrainingSpec) -> None:
        """Makes a training asynchronous, without what does not go with that."""
        spec.aggregation.ClearField("buffering")
        if not self.is_used:
            return
        draw, aggregation = self._draw, spec.aggregation
        if aggregation.WhichOneof("algorithm") not in (None, "fed_avg", "fed_prox", *LONE):
            aggregation.median.SetInParent()
        aggregation.ClearField("mixing")
        aggregation.ClearField("differential_privacy")
        if aggregation.clipping.HasField("adaptive"):
            aggregation.ClearField("clipping")
        spec.ClearField("uncertainty")
        spec.round_policy.ClearField("min_updates")
        spec.target_num_updates = draw.randint(2, 6)
        buffering = aggregation.buffering
        buffering.max_staleness = draw.randint(1, 3)
        buffering.exponent = draw.choice([0.0, 0.5, 1.0])
        if draw.random() < 0.3:
            buffering.fed_async.alpha = draw.choice([0.1, 0.6, 1.0])
        else:
            buffering.size = draw.randint(1, 3)
        if draw.random() < 0.3:
            spec.update_precision = aggregation_pb2.UPDATE_PRECISION_FLOAT16
