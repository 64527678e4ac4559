"""The trainings of the kills are ones that CreateTraining accepts."""

from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from calls import new_id
from chaos.random_training import RandomTraining
from chaos.retrying_client import User
from fedround_server.services.training_spec import read

TRAININGS = 1500


class Created(Exception):
    """A training was created: no more of it is needed."""


def creating_client(counts: Counter[str]) -> Any:
    """Returns a client whose server only reads the spec of trainings, and counts what they have."""

    def call(user: User, method: Any, request: Any, *expected: str, **options: Any) -> Any:
        if method is not client.trainings.CreateTraining:
            raise Created
        [message] = request()
        spec = read(message.spec)
        found = spec.aggregation
        counts["private"] += found.differential_privacy is not None
        counts["buffered"] += found.buffering is not None
        counts["with shadows"] += bool(found.shadows)
        counts["with state"] += bool(found.slots)
        counts["with retention"] += spec.keep_update_rounds is not None
        return SimpleNamespace(training=SimpleNamespace(training_id=new_id(), model_id=new_id()))

    client = Mock()
    client.user = lambda role: User(new_id(), "token")
    client.call = call
    client.events = lambda *_: iter(())
    return client


def test_random_trainings_are_accepted() -> None:
    counts: Counter[str] = Counter()
    client = creating_client(counts)
    for seed in range(TRAININGS):
        training: RandomTraining | None = RandomTraining(client, f"{seed}")
        while training is not None:
            with pytest.raises(Created):
                training.run()
            training = training.successor()
    # Each kind is common enough that some hundred kills meet it often.
    assert all(count > TRAININGS / 10 for count in counts.values()), counts
