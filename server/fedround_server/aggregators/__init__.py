"""The stages of aggregations by name. To add a rule, write its file here and its line below."""

from collections.abc import Mapping
from typing import Any

from fedround_server.aggregators.buffering import FedAsync, FedBuff
from fedround_server.aggregators.bulyan import Bulyan
from fedround_server.aggregators.centered_clipping import CenteredClipping
from fedround_server.aggregators.clipping import AdaptiveClipping, FixedClipping
from fedround_server.aggregators.differential_privacy import DifferentialPrivacy
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.fed_dc import FedDC
from fedround_server.aggregators.fed_dyn import FedDyn
from fedround_server.aggregators.fed_nova import FedNova
from fedround_server.aggregators.fed_prox import FedProx
from fedround_server.aggregators.fl_trust import FLTrust
from fedround_server.aggregators.geometric_median import GeometricMedian
from fedround_server.aggregators.krum import Krum, MultiKrum
from fedround_server.aggregators.lora import FreezeA, LoraStack, LoraSvd
from fedround_server.aggregators.median import Median
from fedround_server.aggregators.mixing import Bucketing, NearestNeighbor
from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.aggregators.q_fed_avg import QFedAvg
from fedround_server.aggregators.scaffold import Scaffold
from fedround_server.aggregators.server_optimizer import Adagrad, Adam, Sgd, Yogi
from fedround_server.aggregators.trimmed_mean import TrimmedMean
from fedround_server.domain.aggregation import BUFFERS, Aggregation, options_of

STAGES: Mapping[str, Mapping[str, type[Any]]] = {
    field: {stage.name: stage for stage in stages}
    for field, stages in {
        "algorithm": (
            FedAvg,
            FedProx,
            FedDC,
            FedNova,
            QFedAvg,
            Median,
            TrimmedMean,
            Krum,
            MultiKrum,
            Bulyan,
            GeometricMedian,
            CenteredClipping,
            FLTrust,
            Scaffold,
            FedDyn,
            LoraStack,
            LoraSvd,
            FreezeA,
            PartialSum,
        ),
        "clipping": (FixedClipping, AdaptiveClipping),
        "mixing": (NearestNeighbor, Bucketing),
        "server_optimizer": (Sgd, Adagrad, Adam, Yogi),
        "buffering": (FedBuff, FedAsync),
        "differential_privacy": (DifferentialPrivacy,),
    }.items()
}
"""By the field of `Aggregation` that they are for, and by name."""
OTHERS = STAGES.keys() - {"algorithm"}


def to_aggregation(data: Mapping[str, Any]) -> Aggregation:
    """Reads an aggregation as `from_aggregation` writes it; other keys are left out.

    Raises:
        KeyError: A stage is not known.
    """
    rule = STAGES["algorithm"][data["algorithm"]](**data["options"])
    others = {field: STAGES[field][one["name"]](**one["options"]) for field, one in data.items() if field in OTHERS}
    shadows = tuple(map(to_aggregation, data.get("shadow", ())))
    return Aggregation(rule, **others, buffers=tuple(data.get("buffers", BUFFERS)), shadows=shadows)


def from_aggregation(found: Aggregation) -> dict[str, Any]:
    """Writes an aggregation in types that JSON has."""
    stages = dict(found.stages)
    rule = stages.pop("algorithm")
    data: dict[str, Any] = {"algorithm": rule.name, "options": options_of(rule)}
    data |= {field: {"name": stage.name, "options": options_of(stage)} for field, stage in stages.items()}
    data |= {} if found.buffers == BUFFERS else {"buffers": list(found.buffers)}
    return data | ({"shadow": list(map(from_aggregation, found.shadows))} if found.shadows else {})
