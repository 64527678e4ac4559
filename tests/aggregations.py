"""Aggregations of one stage each."""

from dataclasses import replace

from fedround_server.aggregators.clipping import FixedClipping
from fedround_server.aggregators.differential_privacy import DifferentialPrivacy
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.fed_dc import FedDC
from fedround_server.aggregators.fed_prox import FedProx
from fedround_server.aggregators.server_optimizer import Adam, Yogi
from fedround_server.domain.aggregation import Aggregation

FED_AVG = Aggregation(FedAvg())
ADAM = Aggregation(FedAvg(), server_optimizer=Adam())
YOGI = Aggregation(FedAvg(), server_optimizer=Yogi())
PRIVATE = Aggregation(FedAvg(), clipping=FixedClipping(), differential_privacy=DifferentialPrivacy(1.0))
TREE = replace(PRIVATE, differential_privacy=DifferentialPrivacy(1.0, tree=True))


def fed_dc(daisy_period: int, aggregation_period: int, seed: int = 0) -> Aggregation:
    return Aggregation(FedDC(daisy_period, aggregation_period, seed))


def fed_prox(mu: float) -> Aggregation:
    return Aggregation(FedProx(mu))
