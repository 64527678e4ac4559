"""Differential privacy of random trainings, with budgets for few rounds, drawn from a seed."""

import random

from fedround.v1 import training_pb2

# Noise and budget: what one, two and three rounds without sampling cost, and a little more.
BUDGETS = {False: (1.0, (4.5, 6.6, 8.6)), True: (10.0, (0.5, 1.2, 1.5))}


def configure_privacy(spec: training_pb2.TrainingSpec, draw: random.Random, often: float) -> None:
    """Adds privacy to a spec, sometimes, and makes the spec go with its privacy, if it has any."""
    stages = spec.aggregation
    if not stages.HasField("differential_privacy"):
        if stages.HasField("fed_dc") or stages.HasField("buffering") or draw.random() >= often:
            return
        _draw(spec, draw)
    spec.ClearField("uncertainty")
    if not stages.differential_privacy.tree:
        spec.cohort.ClearField("over_selection")
        if spec.cohort.HasField("size"):
            spec.cohort.fraction = 0.5
            spec.cohort.ClearField("size")
        if not spec.cohort.ByteSize():
            spec.ClearField("cohort")


def _draw(spec: training_pb2.TrainingSpec, draw: random.Random) -> None:
    stages = spec.aggregation
    if stages.WhichOneof("algorithm") not in (None, "fed_avg", "fed_prox"):
        stages.ClearField(stages.WhichOneof("algorithm"))
    del stages.shadow[:]
    stages.ClearField("mixing")
    stages.ClearField("clipping")
    privacy = stages.differential_privacy
    privacy.tree = draw.random() < 0.4
    privacy.noise_multiplier, budgets = BUDGETS[privacy.tree]
    if draw.random() < 0.8:
        privacy.epsilon_budget = draw.choice(budgets)
    if draw.random() < 0.3:
        privacy.example_cap = draw.randint(1, 10)
    if privacy.tree or draw.random() < 0.5:
        stages.clipping.fixed.norm = draw.uniform(0.1, 10)
    else:
        stages.clipping.adaptive.quantile = draw.choice([0.0, 0.5, 0.9])
