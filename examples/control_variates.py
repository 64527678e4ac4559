"""Control variates: participants with different data, whose local training drifts apart with FedAvg.

Three participants estimate the same weights by least squares, each from other inputs and with an error of its own.
Every participant makes 50 local steps in each round: with FedAvg, the versions of the model go to the mean of what is
best for each alone. With SCAFFOLD (Karimireddy et al., ICML 2020) and FedDyn (Acar et al., ICLR 2021), they go to
what is best for all together. The train function is the same for all three.

    python examples/control_variates.py
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from local_server import create_users, local_server

import fedround_client as fr

PARTICIPANTS, FEATURES, EXAMPLES = 3, 8, 60
ROUNDS, LOCAL_STEPS, LEARNING_RATE = 12, 50, 0.02


def data_of(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs of a participant, shape (examples, features), and the outputs."""
    rng = np.random.default_rng(index)
    x = rng.standard_normal((EXAMPLES, FEATURES)) * rng.uniform(0.4, 1.6, FEATURES)
    return x, x @ (np.ones(FEATURES) + 2 * rng.standard_normal(FEATURES))


def make_train(index: int) -> Callable[..., fr.Update]:
    """Returns the train function of a participant."""
    x, y = data_of(index)

    def train(model, round):
        w = model["w"]
        for _ in range(LOCAL_STEPS):
            gradients = {"w": x.T @ (x @ w - y) / EXAMPLES}
            if round.control is not None:
                gradients = round.control.correct(gradients, {"w": w})
            w = w - LEARNING_RATE * gradients["w"]
        return fr.Update({"w": w}, EXAMPLES, local_steps=LOCAL_STEPS, learning_rate=LEARNING_RATE)

    return train


def best() -> np.ndarray:
    """Returns the weights that are best for all participants together."""
    inputs, outputs = zip(*map(data_of, range(PARTICIPANTS)), strict=True)
    return np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0]


def main() -> None:
    distances = {}
    with (
        local_server() as (address, admin_token),
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(PARTICIPANTS) as threads,
    ):
        actor_token, ids, tokens = create_users(address, admin_token, PARTICIPANTS)

        def take_part(index: int, training_id: str) -> None:
            with fr.connect(address, tokens[index]) as client:
                client.participate(make_train(index), training_id=training_id, private_folder=folder)

        with fr.connect(address, actor_token) as actor:
            for name, rule in (("FedAvg", fr.FedAvg()), ("SCAFFOLD", fr.Scaffold()), ("FedDyn", fr.FedDyn(alpha=1))):
                training = actor.create_training(
                    {"w": np.zeros(FEATURES)}, name=name, client_ids=ids, target_num_updates=ROUNDS, aggregation=rule
                )
                actor.start_training(training.training_id)
                list(threads.map(take_part, range(PARTICIPANTS), [training.training_id] * PARTICIPANTS))
                found = actor.download_model(training.model_id)["w"]
                distances[name] = float(np.linalg.norm(found - best()))
                print(f"{name}: the model is {distances[name]:.2g} from the best one")
    assert distances["SCAFFOLD"] < distances["FedAvg"] / 100
    assert distances["FedDyn"] < distances["FedAvg"] / 100


if __name__ == "__main__":
    main()
