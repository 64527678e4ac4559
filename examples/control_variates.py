"""Control variates: participants with different data, whose local training drifts apart with FedAvg.

Six participants estimate the same weights by least squares, each from inputs of another distribution and with an error
of its own. Every participant makes 40 local steps in each round: with FedAvg, the versions of the model go to the mean
of what is best for each alone. With SCAFFOLD (Karimireddy et al., ICML 2020) and FedDyn (Acar et al., ICLR 2021), they
go to what is best for all together. The train function is the same for all three.

    python examples/control_variates.py
"""

import numpy as np

import fedround_client as fr

PARTICIPANTS, FEATURES, EXAMPLES = 6, 8, 60
ROUNDS, LOCAL_STEPS, LEARNING_RATE = 25, 40, 0.02


def data_of(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs of a participant, shape (examples, features), and the outputs."""
    rng = np.random.default_rng(index)
    x = rng.standard_normal((EXAMPLES, FEATURES)) * rng.uniform(0.2, 1.6, FEATURES)
    return x, x @ (np.ones(FEATURES) + 2 * rng.standard_normal(FEATURES))


def make_client(index: int):
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
    for name, rule in (("FedAvg", fr.FedAvg()), ("SCAFFOLD", fr.Scaffold()), ("FedDyn", fr.FedDyn(alpha=1))):
        result = fr.simulate(
            make_client,
            {"w": np.zeros(FEATURES)},
            clients=PARTICIPANTS,
            rounds=ROUNDS,
            workers=1,
            aggregation=rule,
        )
        distances[name] = float(np.linalg.norm(result.model["w"] - best()))
        print(f"{name}: the model is {distances[name]:.2g} from the best one")
    assert distances["SCAFFOLD"] < distances["FedAvg"] / 100
    assert distances["FedDyn"] < distances["FedAvg"] / 100


if __name__ == "__main__":
    main()
