"""Asynchronous training: participants of very different speed, of which none waits for another.

Two fast participants and a slow one fit a line to their data with FedAsync (Xie et al., 2019). The slow one trains its
first update until the fast ones have made VERSIONS_AHEAD versions of the model. Then its update, which started from
version 0, moves the newest version all the same, by less the more versions were made meanwhile.

    python examples/asynchronous.py
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from local_server import create_users, local_server

import fedround_client as fr

PARTICIPANTS, SLOW = 3, 0
VERSIONS, VERSIONS_AHEAD = 12, 5
PATIENCE = 60  # seconds after which a participant that waits in vain fails
LINE = np.array([2.0, -1.0])  # slope and intercept

ahead = threading.Event()  # the fast participants have made VERSIONS_AHEAD versions
delivered = threading.Event()  # the first update of the slow participant was accepted


def fit(index: int, line: np.ndarray) -> np.ndarray:
    """Returns slope and intercept after some gradient steps on the data of a participant."""
    rng = np.random.default_rng(index)
    x = np.stack([rng.uniform(-1, 1, 50), np.ones(50)], axis=1)
    y = x @ LINE + 0.1 * rng.standard_normal(50)
    for _ in range(20):
        line = line - 0.2 * x.T @ (x @ line - y) / len(x)
    return line


def make_train(index: int) -> Callable[..., fr.Update]:
    """Returns the train function of a participant."""

    def train_fast(model, round):
        # The training must not end before the slow participant has delivered an update.
        if round.model_version >= VERSIONS_AHEAD:
            ahead.set()
            wait_for(delivered)
        return fr.Update({"line": fit(index, model["line"])}, 50)

    def train_slow(model, round):
        if round.model_version:
            delivered.set()
        else:
            wait_for(ahead)
        return fr.Update({"line": fit(SLOW, model["line"])}, 50)

    return train_slow if index == SLOW else train_fast


def wait_for(event: threading.Event) -> None:
    if not event.wait(PATIENCE):
        raise TimeoutError("another participant has not come as far as expected")


def main() -> None:
    with local_server() as (address, admin_token), ThreadPoolExecutor(PARTICIPANTS) as threads:
        actor_token, ids, tokens = create_users(address, admin_token, PARTICIPANTS)
        with fr.connect(address, actor_token) as actor:
            training = actor.create_training(
                {"line": np.zeros(2)},
                name="asynchronous",
                client_ids=ids,
                target_num_updates=VERSIONS,
                aggregation=fr.FedAsync(alpha=0.6),
            )
            actor.start_training(training.training_id)

            def take_part(index: int) -> int:
                with fr.connect(address, tokens[index]) as client:
                    return client.participate(make_train(index), training_id=training.training_id).rounds

            counts = list(threads.map(take_part, range(PARTICIPANTS)))
            for number in range(VERSIONS):
                for one in actor.get_round(training.training_id, number).participants:
                    if one.HasField("report"):
                        who = "slow" if one.user_id == ids[SLOW] else "fast"
                        alpha = 0.6 / (1 + one.report.staleness) ** 0.5
                        print(f"version {number + 1}: {who}, staleness {one.report.staleness}, moved by {alpha:.2f}")
            print(f"updates of the slow participant: {counts[SLOW]}, of the fast ones: {counts[1]} and {counts[2]}")
            found = actor.download_model(training.model_id)["line"]
            print(f"the line has the slope {found[0]:.2f} and the intercept {found[1]:.2f}")


if __name__ == "__main__":
    main()
