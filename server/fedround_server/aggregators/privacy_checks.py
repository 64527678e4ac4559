"""What differential privacy goes with: its bound has to hold whatever the participants and their updates are."""

from fedround_server.aggregators.clipping import LARGEST, SMALLEST, AdaptiveClipping, FixedClipping
from fedround_server.aggregators.differential_privacy import multiplier_of_updates
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.errors import AggregationIncompatible
from fedround_server.domain.training import TrainingSpec
from fedround_server.domain.uncertainty import Swag

FIELD = "differential_privacy"
RULES = ("fed_avg", "fed_prox")


def check_private(found: Aggregation) -> None:
    """Checks that the stages of an aggregation go with its differential privacy, if it has any.

    Raises:
        AggregationIncompatible: One does not.
    """
    privacy, clipping = found.differential_privacy, found.clipping
    if privacy is None:
        return
    if found.rule.name not in RULES:
        raise AggregationIncompatible(
            FIELD,
            f"does not go with {found.rule.name}, of whose result one participant can change more than its own clipped"
            f" update: use {' or '.join(RULES)}",
        )
    if found.mixing is not None:
        raise AggregationIncompatible(
            FIELD, "does not go with mixing, with which one participant changes the updates of others"
        )
    if clipping is None:
        raise AggregationIncompatible(
            FIELD, "needs clipping, since the noise is a multiple of its norm: set clipping.fixed or clipping.adaptive"
        )
    if isinstance(clipping, FixedClipping) and not SMALLEST <= clipping.norm <= LARGEST:
        raise AggregationIncompatible(
            "clipping.fixed.norm",
            f"is {clipping.norm:g}; with differential privacy it must be >= {SMALLEST:g} and <= {LARGEST:g}: float64"
            " does not hold the squares of differences beyond, so that updates would not be clipped",
        )
    if not isinstance(clipping, AdaptiveClipping):
        return
    if privacy.tree:
        raise AggregationIncompatible(
            FIELD, "with tree does not go with adaptive clipping: the noise of a tree has one norm; use clipping.fixed"
        )
    std, multiplier = clipping.noise_std, privacy.noise_multiplier
    if std is not None and not (std > 0 and multiplier_of_updates(multiplier, std) < float("inf")):
        raise AggregationIncompatible(
            "clipping.adaptive.noise_std",
            f"is {std:g}; with the noise_multiplier {multiplier:g} it must be more than {multiplier / 2:g}, since the"
            " number of updates within the norm reveals something, too",
        )


def check_private_training(spec: TrainingSpec) -> None:
    """Checks that a training goes with the differential privacy of its aggregation, if it has any.

    Raises:
        AggregationIncompatible: It does not.
    """
    privacy, cohort = spec.aggregation.differential_privacy, spec.cohort
    if privacy is None:
        return
    if isinstance(spec.uncertainty, Swag):
        raise AggregationIncompatible(FIELD, "does not go with swag, whose moments have no noise: choose one")
    if cohort is None or privacy.tree:
        return
    for field, is_set in (("size", cohort.size is not None), ("over_selection", cohort.over_selection > 1)):
        if is_set:
            raise AggregationIncompatible(
                FIELD,
                f"does not go with cohort.{field}: its accounting needs that each participant is drawn independently of"
                " the others; use cohort.fraction, or tree, which needs no sampling",
            )
