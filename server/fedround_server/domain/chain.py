"""Daisy chaining: when local models are averaged, and who is dealt whose until then.

FedDC (Kamp et al., Federated Learning from Small Datasets, ICLR 2023).
"""

import random
from collections.abc import Mapping, Sequence

from fedround_server.domain.training import Aggregation

FED_DC = "fed_dc"


def local_rounds(aggregation: Aggregation) -> int:
    """Returns how many local rounds a round of a training is long: 1, or the daisy period."""
    return int(aggregation.options["daisy_period"]) if aggregation.algorithm == FED_DC else 1


def averages(aggregation: Aggregation, step: int) -> bool:
    """Tells whether a round's updates are averaged; if not, they are dealt.

    Args:
        aggregation: The training's.
        step: How many rounds of the chain came before this one, from 0.
    """
    if aggregation.algorithm != FED_DC:
        return True
    return (step + 1) * local_rounds(aggregation) >= int(aggregation.options["aggregation_period"])


def deal(user_ids: Sequence[str], aggregation: Aggregation, number: int) -> Mapping[str, str]:
    """Deals each participant the model of another one; a single one keeps its own.

    A uniformly drawn derangement: permutations are drawn until one has no fixed point, which takes e tries on average.

    Args:
        user_ids: Whose updates counted, in canonical order.
        aggregation: The training's, with the seed.
        number: The round that is done; each has a draw of its own.

    Returns:
        For each participant, whose model it goes on with.
    """
    # A string is hashed in the same way by every Python, unlike most other seeds.
    draw = random.Random(f"{int(aggregation.options['seed'])} {number}")  # noqa: S311 - reproducible, not secret
    sources = list(user_ids)
    while len(sources) > 1:
        draw.shuffle(sources)
        if all(source != user_id for source, user_id in zip(sources, user_ids, strict=True)):
            break
    return dict(zip(user_ids, sources, strict=True))
