"""Aggregations of the SDK: rules, stages, and the functions that set server optimizers."""

import re

import pytest
from typer.testing import CliRunner

import fedround_client as fr
from fedround.v1.aggregation_pb2 import Aggregation, Clipping, Mixing, ServerOptimizer
from fedround_client import options
from fedround_client.command import app
from fedround_client.command.aggregation import aggregation_text

RULES = [
    field.message_type.name for field in Aggregation.DESCRIPTOR.oneofs_by_name["algorithm"].fields if field.message_type
]


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_taken_by_the_type_of_its_message(name):
    rule = getattr(fr, name)()
    made = options.aggregation(rule)
    assert getattr(made, made.WhichOneof("algorithm")) == rule


def test_stages_are_put_in_their_places():
    made = fr.aggregate(
        fr.TrimmedMean(beta=0.2),
        clipping=fr.FixedClipping(norm=2),
        mixing=fr.Bucketing(size=3),
        server_optimizer=fr.Sgd(momentum=0.5),
        buffers=["*mean"],
    )
    assert made == Aggregation(
        trimmed_mean=fr.TrimmedMean(beta=0.2),
        clipping=Clipping(fixed=fr.FixedClipping(norm=2)),
        mixing=Mixing(bucketing=fr.Bucketing(size=3)),
        server_optimizer=ServerOptimizer(sgd=fr.Sgd(momentum=0.5)),
        buffers=["*mean"],
    )
    assert fr.aggregate() == Aggregation()


def test_privacy_is_added_once():
    private = fr.DifferentialPrivacy(noise_multiplier=1)
    made = fr.aggregate(fr.FedAdam(), clipping=fr.AdaptiveClipping(), differential_privacy=private)
    assert made.differential_privacy == private
    assert made.clipping.HasField("adaptive")
    with pytest.raises(ValueError, match="has differential_privacy already"):
        fr.aggregate(made, differential_privacy=private)


def test_the_functions_have_the_defaults_of_the_paper():
    adam = fr.Adam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3)
    assert fr.FedAdam() == Aggregation(server_optimizer=ServerOptimizer(adam=adam))
    adam.learning_rate = 0.01
    assert fr.FedYogi() == Aggregation(server_optimizer=ServerOptimizer(yogi=adam))
    assert fr.FedAvgM() == Aggregation(server_optimizer=ServerOptimizer(sgd=fr.Sgd(learning_rate=1, momentum=0.9)))
    adagrad = fr.Adagrad(learning_rate=0.1, tau=1e-9)
    assert fr.FedAdagrad() == Aggregation(server_optimizer=ServerOptimizer(adagrad=adagrad))


@pytest.mark.parametrize("function", [fr.FedAvgM, fr.FedAdagrad, fr.FedAdam, fr.FedYogi])
def test_an_optimizer_goes_with_another_rule_and_other_stages(function):
    made = function(0.5, aggregation=fr.Krum(f=2), clipping=fr.FixedClipping(norm=2), buffers=["b"])
    alone = function(0.5)
    assert made == fr.aggregate(
        fr.Krum(f=2), clipping=fr.FixedClipping(norm=2), server_optimizer=alone.server_optimizer, buffers=["b"]
    )
    clipped = fr.aggregate(fr.Median(), clipping=fr.FixedClipping())
    assert function(aggregation=clipped).clipping == clipped.clipping
    with pytest.raises(ValueError, match="has a server_optimizer already"):
        function(aggregation=alone)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="learning_rate must be a finite number > 0"):
            function(rate)


def test_a_message_in_the_wrong_place_is_named():
    with pytest.raises(TypeError, match=r"FixedClipping is no algorithm of Aggregation; known are FedAvg, .*Krum"):
        options.aggregation(fr.FixedClipping())
    with pytest.raises(TypeError, match=r"Krum is no method of Clipping; known are FixedClipping"):
        fr.aggregate(clipping=fr.Krum())
    with pytest.raises(TypeError, match=r"write \['\*mean'\]"):
        fr.aggregate(buffers="*mean")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Aggregation(fed_avg=fr.FedAvg()), "FedAvg"),
        (fr.aggregate(fr.FedProx(mu=0.1)), "FedProx(mu=0.1)"),
        (fr.aggregate(fr.Krum(f=0)), "Krum(f=0)"),
        (
            fr.FedAdam(aggregation=fr.TrimmedMean(beta=0.2)),
            "FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=0.001) over trimmed mean(beta=0.2)",
        ),
        (fr.FedAvgM(), "FedAvgM(learning_rate=1, momentum=0.9)"),
        (
            fr.aggregate(fr.Median(), clipping=fr.FixedClipping(norm=2), mixing=fr.NearestNeighbor(f=1), buffers=["b"]),
            "median after fixed clipping(norm=2) and nearest neighbor mixing(f=1); b averaged",
        ),
        (
            fr.FedAdam(
                aggregation=fr.aggregate(differential_privacy=fr.DifferentialPrivacy(noise_multiplier=1, delta=1e-6)),
                clipping=fr.AdaptiveClipping(quantile=0.9),
            ),
            "FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=0.001) after adaptive clipping(quantile=0.9) with"
            " differential privacy(noise_multiplier=1, delta=1e-06)",
        ),
        (fr.aggregate(fr.FlTrust(trusted_client_id="id")), "FLTrust(trusted_client_id=site 1)"),
    ],
)
def test_stages_as_text(made, text):
    assert aggregation_text(made, {"id": "site 1"}) == text


def test_help_names_all_stages_of_aggregations():
    shown = CliRunner().invoke(app, ["training", "create", "--help"]).stdout
    fields = Aggregation.DESCRIPTOR.fields_by_name
    stages = [Aggregation.DESCRIPTOR.oneofs_by_name["algorithm"].fields]
    stages += [fields[name].message_type.fields for name in ("clipping", "mixing", "server_optimizer")]
    stages += [fields["differential_privacy"].message_type.fields]
    words = set(re.findall(r"\w+", shown))
    assert {field.name for some in stages for field in some} | {"fedavgm", "fedyogi", "trusted_client_id"} <= words
