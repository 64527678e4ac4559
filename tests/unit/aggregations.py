"""Aggregations of tests."""

from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.domain.aggregation import Aggregation

FED_AVG = Aggregation(FedAvg())
