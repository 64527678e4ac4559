"""Measures whether time tells what exists: the same call about what others have, and about what nobody has.

A server of its own holds a training of an actor; another actor asks for it, and for ids of nothing, in turn.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedround_client as fr

RESULTS = Path(__file__).parent / "foreign.json"


def refused(call: Callable[[], object]) -> float:
    """Seconds until a call is refused as not found."""
    begin = time.perf_counter()
    try:
        call()
    except fr.NotFound:
        return time.perf_counter() - begin
    raise SystemExit("a stranger got an answer")


def measure(stranger: fr.Client, training_id: str, model_id: str, calls: int) -> dict[str, dict[str, float]]:
    """Returns the medians of each call, in microseconds; foreign and missing alternate."""
    asked: dict[str, tuple[Callable[[str], object], str]] = {
        "GetTraining": (stranger.get_training, training_id),
        "StartTraining": (stranger.start_training, training_id),
        "GetRound": (stranger.get_round, training_id),
        "GetModel": (stranger.get_model, model_id),
    }
    found = {}
    for name, (call, foreign) in asked.items():
        times: dict[str, list[float]] = {"foreign": [], "missing": []}
        for _ in range(calls):
            for kind, id_ in (("foreign", foreign), ("missing", str(uuid.uuid4()))):
                times[kind].append(refused(lambda call=call, id_=id_: call(id_)) * 1e6)  # type: ignore[misc]
        found[name] = {kind: round(statistics.median(values), 1) for kind, values in times.items()}
    return found


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "fedround_server", "--listen", "127.0.0.1:0", "--data-dir", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                assert process.stdout
                address = process.stdout.readline().split()[-1]
                with fr.connect(address, (Path(name) / "admin.token").read_text()) as admin:
                    made = admin.create_training({"w": np.zeros(8, np.float32)}, name="t", target_num_updates=1)
                    _, token = admin.create_user("stranger", "ACTOR")
                    with fr.connect(address, token) as stranger:
                        found = measure(stranger, made.training_id, made.model_id, calls)
            finally:
                process.terminate()
    for method, medians in found.items():
        print(f"{method}: foreign {medians['foreign']:.0f} us, missing {medians['missing']:.0f} us")
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "calls": calls, "microseconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
