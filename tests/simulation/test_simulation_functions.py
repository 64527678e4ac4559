import pickle
from pathlib import Path

import numpy as np
import pytest

from fedround_client.participation import Round
from fedround_client.simulation.functions import SimulationFailed, check_portable, load, make_callbacks
from fedround_client.simulation.worker import Functions
from simulation import simulated


def test_a_function_is_loaded_by_its_name() -> None:
    assert load("simulation.simulated:make_client") is simulated.make_client


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("simulated", "'simulated' is not MODULE:FUNCTION"),
        (":make_client", "is not MODULE:FUNCTION"),
        ("nowhere:make_client", "There is no module nowhere: run the command in the folder of nowhere.py"),
        ("simulation.simulated:nothing", "The module simulation.simulated has no nothing."),
    ],
)
def test_what_cannot_be_loaded_is_named(target: str, text: str) -> None:
    with pytest.raises(SimulationFailed, match=text):
        load(target)


def test_a_module_that_fails_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_module.py").write_text("1 / 0")
    (tmp_path / "importing_module.py").write_text("import nowhere")
    with pytest.raises(SimulationFailed, match="failing_module cannot be imported") as failed:
        load("failing_module:make_client")
    assert failed.value.details.endswith("ZeroDivisionError: division by zero")
    with pytest.raises(SimulationFailed, match="importing_module cannot be imported: No module named 'nowhere'"):
        load("importing_module:make_client")


def test_a_function_that_workers_cannot_import_is_rejected() -> None:
    check_portable(simulated.make_client)
    with pytest.raises(SimulationFailed, match="define it at the top level of a module"):
        check_portable(lambda index: simulated.make_client(index))
    with pytest.raises(SimulationFailed, match="must be a function, not a int"):
        check_portable(simulated.not_a_function)


def test_a_client_that_cannot_be_made_is_named_with_its_traceback_once() -> None:
    with pytest.raises(SimulationFailed, match=r"make_client\(3\) raised KeyError: 'no data'") as failed:
        make_callbacks(simulated.make_client_that_fails_at_3, 3)
    copied = pickle.loads(pickle.dumps(failed.value))  # as it comes from a worker
    assert str(copied) == str(failed.value)
    assert str(copied).count("Traceback") == 1
    assert "functions.py" not in copied.details


@pytest.mark.parametrize("made", [None, (), (1,), (print, 1), (print, None, None, print)])
def test_what_is_no_function_of_a_client_is_rejected(made: object) -> None:
    with pytest.raises(SimulationFailed, match=r"make_client\(7\) must return train, or \(train, evaluate\)"):
        make_callbacks(lambda index: made, 7)


@pytest.mark.parametrize("made", [print, (print,), (print, abs), (print, None, abs)])
def test_functions_are_those_of_participate(made: object) -> None:
    callbacks = make_callbacks(lambda index: made, 0)
    assert callbacks.train is print
    assert callbacks.evaluate is (abs if made == (print, abs) else None)


def test_draws_depend_on_the_client_and_the_round_only() -> None:
    def drawn(functions: Functions, index: int, number: int) -> list[float]:
        model = {"w": np.zeros(8, np.float32), "b": np.zeros(())}
        functions.make(index).train(model, Round("t", number, "TRAIN", 0))
        return [*model["w"].tolist(), float(model["b"])]

    first, second = (Functions(simulated.make_client, seed=1) for _ in range(2))
    expected = [drawn(first, index, number) for index, number in ((0, 0), (1, 0), (1, 2))]
    assert [drawn(second, index, number) for index, number in ((1, 2), (1, 0), (0, 0))] == expected[::-1]
    assert len({tuple(values) for values in expected}) == 3
    assert drawn(Functions(simulated.make_client, seed=2), 0, 0) != expected[0]


def test_calls_in_one_round_draw_anew() -> None:
    def make_client(index):
        return lambda model, round: (model, int(np.random.randint(2**31)))

    train = Functions(make_client, seed=1).make(0).train
    round = Round("t", 0, "SWAG", 0)
    assert train({}, round) != train({}, round)
