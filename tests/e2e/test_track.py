"""`fedround track` against a real server: kills and restarts leave neither duplicates nor gaps."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import Federation, federation, plus_one
from e2e.test_command import forked_fedround
from fedround_client.trackers import TRACKERS
from forked import ForkedProcess, fork_server
from servers import Server
from tracked import FILES, content

pytestmark = pytest.mark.timeout(120)
MODEL = {"w": np.zeros(3, np.float32)}


def evaluate(model: dict[str, np.ndarray], _: fr.Round) -> tuple[dict[str, float], int]:
    return {"loss": 8 - float(model["w"][0])}, 1


def started(group: Federation, rounds: int) -> str:
    training = group.actor.create_training(
        MODEL, name="digits", target_num_updates=rounds, client_ids=group.ids, metric_names=["loss"]
    )
    group.actor.start_training(training.training_id)
    return training.training_id


def tracking(server: Server, group: Federation, folder: Path, name: str, *options: str) -> ForkedProcess:
    """Starts a tracker in a process of its own."""
    folder.mkdir(exist_ok=True)
    output = str(folder / FILES.get(name, "out"))
    argv = ["--server", server.address, "track", "digits", "--to", name, "--output", output, *options]
    return fork_server().fork(argv, stderr=folder / "log", environment={"FEDROUND_TOKEN": group.actor_token})


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kills_of_the_tracker_and_a_restart_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "files" / "t.jsonl"
    with Server(tmp_path / "data") as server, federation(server, 1) as group:
        training_id = started(group, 6)

        def slow(model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, np.ndarray], int]:
            # Each round waits until the one before it is tracked: the kills are between given rounds.
            while lines(path) < 1 + round.number:
                time.sleep(0.01)
            return plus_one(model, round)

        tracker = tracking(server, group, path.parent, "jsonl")
        end = group.take_part(0, slow, evaluate)
        for number in (3, 6):
            while lines(path) < number:
                time.sleep(0.01)
            tracker.kill()
            tracker.wait()
            tracker.stdout.close()
            if number == 6:
                server.kill()
                server.start()
            tracker = tracking(server, group, path.parent, "jsonl")
        end.result()
        assert tracker.wait() == 0
        tracker.stdout.close()
        run, *rounds, last = map(json.loads, path.read_text().splitlines())
        assert (run["training_id"], last["state"]) == (training_id, "completed")
        assert [one["number"] for one in rounds] == list(range(12))
        assert [one["version"] for one in rounds] == [version for version in range(1, 7) for _ in range(2)]
        assert [one["metrics"]["loss"] for one in rounds[1::2]] == [7, 6, 5, 4, 3, 2]
        assert all(one["num_updates"] == 1 and one["seconds"] >= 0 for one in rounds)


def test_all_trackers_catch_up_and_several_may_run_at_once(server: Server, tmp_path: Path) -> None:
    with federation(server, 1) as group:
        training_id = started(group, 2)
        trackers = [tracking(server, group, tmp_path, name) for name in TRACKERS]
        group.take_part(0, plus_one, evaluate).result()
        assert [tracker.wait() for tracker in trackers] == [0] * len(TRACKERS)
        for tracker in trackers:
            tracker.stdout.close()
        again = tracking(server, group, tmp_path / "again", "csv", "--no-follow")
        assert again.wait() == 0
        again.stdout.close()
        assert content("csv", tmp_path / "again") == content("csv", tmp_path)
        assert content("csv", tmp_path).count(training_id) == 4


def test_without_following(server: Server, tmp_path: Path) -> None:
    with federation(server, 2) as group:
        training_id = started(group, 2)
        group.take_part(0, plus_one, evaluate)
        with group.connect(1) as client:
            client.submit_update(training_id, 0, {"w": np.ones(3, np.float32)}, 1)
            while group.actor.get_training(training_id).round < 1:
                time.sleep(0.01)
        tracked = group.actor.track(training_id, "csv", str(tmp_path / "t.csv"), follow=False)
        assert (tracked.model_version, lines(tmp_path / "t.csv")) == (1, 2)
        group.actor.stop_training(training_id, now=True)
        ended = forked_fedround(
            server.address, group.actor_token, "track", training_id, "--to", "csv", "--output", tmp_path / "t.csv"
        )
        assert (ended.returncode, lines(tmp_path / "t.csv")) == (5, 2)
        group.actor.remove_training(training_id)
        refused = forked_fedround(server.address, group.actor_token, "track", training_id, "--to", "csv")
        assert (refused.returncode, "TRAINING_NOT_FOUND" in refused.stderr) == (1, True)


def test_the_log_of_a_server_that_was_restored_ends_too_early(server: Server, tmp_path: Path) -> None:
    with federation(server, 1) as group:
        training_id = started(group, 1)
        group.take_part(0, plus_one, evaluate).result()
        path = tmp_path / "t.jsonl"
        group.actor.track(training_id, "jsonl", str(path))
        path.write_text(path.read_text() + json.dumps({"type": "end", "sequence": 999}) + "\n")
        with pytest.raises(fr.TrackerFailed, match="restored from an older backup"):
            group.actor.track(training_id, "jsonl", str(path))
