"""Options and their messages."""

import pytest

from fedround_client import (
    Ensemble,
    FedAvg,
    FedDc,
    FedProx,
    McDropout,
    NoUncertainty,
    Swag,
    options,
)

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("make", "field", "choice"),
    [
        (options.aggregation, "fed_avg", FedAvg()),
        (options.aggregation, "fed_prox", FedProx(mu=0.5)),
        (options.aggregation, "fed_dc", FedDc(daisy_period=2, aggregation_period=6, seed=7)),
        (options.uncertainty, "none", NoUncertainty()),
        (options.uncertainty, "mc_dropout", McDropout(samples=3, softmax=True)),
        (options.uncertainty, "swag", Swag(every=2, rank=1)),
        (options.uncertainty, "ensemble", Ensemble(last_versions=3)),
    ],
)
def test_options_are_wrapped_in_their_message(make, field, choice):
    message = make(choice)
    assert message.HasField(field)
    assert getattr(message, field) == choice
    assert make(message) is message
    assert make(None) is None
