"""`fedround training watch` on a terminal, against a real server."""

from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import Federation, federation, plus_one
from e2e.terminals import LEAVE_SCREEN, Terminal
from e2e.test_command import forked_fedround
from servers import Server

pytestmark = pytest.mark.timeout(120)

MODEL = {"w": np.zeros(3, np.float32)}


def watch(group: Federation, server: Server, token: str = "", *options: str, **size: int) -> Terminal:
    return Terminal(server.address, token or group.actor_token, "training", "watch", "digits", *options, **size)


def started(group: Federation, rounds: int = 2) -> str:
    training = group.actor.create_training(
        MODEL, name="digits", target_num_updates=rounds, client_ids=group.ids, metric_names=["loss"]
    )
    group.actor.start_training(training.training_id)
    return training.training_id


def evaluate(model: dict[str, np.ndarray], _: fr.Round) -> tuple[dict[str, float], int]:
    return {"loss": 8 - float(model["w"][0])}, 1


def shows(*texts: str):
    return lambda frame: all(any(text in line for line in frame) for text in texts)


def test_the_view_follows_a_training_over_a_restart_of_the_server(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, federation(server, 2) as group:
        training_id = started(group)
        with watch(group, server) as terminal:
            frame = terminal.until(shows("0 of 2 updates", "never connected"))
            assert frame[0].startswith("digits  running for ")
            assert frame[1] == "round 1 of 4: training; version 0 of 2"
            with group.connect(0) as client:
                client.submit_update(training_id, 0, MODEL, 10)
            terminal.until(shows("1 of 2 updates", "round 1 of 4: update of "))
            terminal.resize(40, 10)
            terminal.until(lambda frame: len(frame) <= 10 and max(map(len, frame)) <= 40)
            server.kill()
            terminal.until(shows("reconnecting: UNAVAILABLE"))
            server.start()
            terminal.until(shows("digits  running for "))
            for number in range(2):
                group.take_part(number, plus_one, evaluate)
            code, after = terminal.end()
    assert (code, "completed" in after, "version 2 of 2" in after) == (0, True, True)
    assert "Trying again" not in terminal.output


def test_ctrl_c_restores_the_terminal(server: Server) -> None:
    with federation(server, 1) as group:
        training_id = started(group)
        with watch(group, server) as terminal:
            terminal.until(shows("0 of 1 updates"))
            terminal.type("\x03")
            code, after = terminal.end()
        group.actor.remove_training(training_id, force=True)
    assert (code, after.replace("^C", "").strip()) == (130, "")
    # It has left the alternate screen, and shows the cursor.
    assert "\x1b[?25h" in terminal.output
    assert terminal.output.count(LEAVE_SCREEN) == 1


def test_a_participant_sees_how_many_have_arrived_and_a_stop_has_its_exit_code(server: Server) -> None:
    with federation(server, 2) as group:
        training_id = started(group)
        with watch(group, server, group.tokens[1]) as terminal:
            terminal.until(shows("0 of 2 updates"))
            with group.connect(0) as client:
                client.submit_update(training_id, 0, MODEL, 10)
            frame = terminal.until(shows("1 of 2 updates"))
            assert not shows("never connected")(frame)
            group.actor.stop_training(training_id, now=True)
            code, after = terminal.end()
    assert (code, "stopped by its actor" in after) == (5, True)


def test_plain_lines_on_a_terminal(server: Server) -> None:
    with federation(server, 1) as group:
        training_id = started(group)
        group.actor.stop_training(training_id, now=True)
        with watch(group, server, "", "--plain") as terminal:
            code, text = terminal.end()
        waited = forked_fedround(server.address, group.actor_token, "training", "wait", training_id)
    assert (code, "stopped by its actor: version 0" in text) == (5, True)
    assert "\x1b[?1049h" not in terminal.output
    assert waited.returncode == 5


def test_a_participant_that_is_removed(server: Server) -> None:
    with federation(server, 2) as group:
        training_id = started(group)
        with watch(group, server, group.tokens[1]) as terminal:
            terminal.until(shows("0 of 2 updates"))
            group.actor.remove_clients(training_id, [group.ids[1]])
            code, after = terminal.end()
        group.actor.remove_training(training_id, force=True)
    assert (code, "CLIENT_REMOVED: You were removed" in after) == (1, True)
