"""Stages of the aggregation of a random training, drawn from a seed."""

import random
from collections.abc import Sequence

from fedround.v1 import aggregation_pb2

RULES = ("median", "trimmed_mean", "geometric_median", "centered_clipping")
TRAINED_OTHERWISE = ("scaffold", "fed_dyn")
"""Rules that a shadow aggregation can't have."""


def draw_stages(
    aggregation: aggregation_pb2.Aggregation,
    draw: random.Random,
    rules: Sequence[str] = RULES + TRAINED_OTHERWISE,
) -> None:
    """Draws a rule, and sometimes clipping, mixing and a server optimizer; with daisy chaining nothing."""
    if aggregation.HasField("fed_dc"):
        return
    if draw.random() < 0.5:
        rule = draw.choice(rules)
        getattr(aggregation, rule).SetInParent()
        if rule == "trimmed_mean":
            aggregation.trimmed_mean.beta = draw.choice([0.0, 0.2, 0.4])
        elif rule == "centered_clipping":
            aggregation.centered_clipping.tau = draw.uniform(1, 100)
            aggregation.centered_clipping.iterations = draw.randint(1, 3)
        elif rule == "scaffold":
            aggregation.scaffold.learning_rate = draw.choice([0.0, 0.5])
        elif rule == "fed_dyn":
            aggregation.fed_dyn.alpha = draw.choice([0.0, 0.5])
    if aggregation.HasField("fed_dyn"):
        return
    changes_updates = not aggregation.HasField("scaffold")
    if changes_updates and draw.random() < 0.25:
        aggregation.clipping.fixed.norm = draw.uniform(1, 200)
    if changes_updates and draw.random() < 0.25:
        if draw.random() < 0.5:
            aggregation.mixing.nearest_neighbor.f = draw.randint(0, 1)
        else:
            aggregation.mixing.bucketing.size = draw.randint(1, 2)
            aggregation.mixing.bucketing.seed = draw.randint(0, 99)
    if draw.random() < 0.6:
        optimizer = aggregation.server_optimizer
        name = draw.choice(["sgd", "adagrad", "adam", "yogi"])
        options = getattr(optimizer, name)
        options.learning_rate = draw.choice([0.01, 0.5, 1.0])
        if name == "sgd":
            options.momentum = draw.choice([0.0, 0.9])
        else:
            options.beta1 = draw.choice([0.0, 0.9])
            options.tau = draw.choice([1e-3, 0.1])
        if name in ("adam", "yogi"):
            options.bias_correction = draw.random() < 0.5
