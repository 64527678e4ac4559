"""Measures whether time tells what exists: the same call about what others have, and about what nobody has.

A server of its own holds a training of an actor; another actor asks for it, and for ids of nothing, in turn.
"""

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedround_client as fr
from measure import fedround_server, keep


def refused(call: Callable[[], object]) -> float:
    """Seconds until a call is refused as not found."""
    begin = time.perf_counter()
    try:
        call()
    except fr.NotFound:
        return time.perf_counter() - begin
    raise SystemExit("a stranger got an answer")


def measure(stranger: fr.Client, training_id: str, model_id: str, calls: int) -> dict[str, dict[str, float]]:
    """Returns the medians of each call, in microseconds, and their ratio; foreign and missing alternate."""
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
        medians = {kind: statistics.median(values) for kind, values in times.items()}
        ratio = round(medians["foreign"] / medians["missing"], 3)
        found[name] = {kind: round(value, 1) for kind, value in medians.items()} | {"ratio": ratio}
    return found


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    calls = parser.parse_args().calls
    with (
        tempfile.TemporaryDirectory() as name,
        fedround_server(Path(name) / "data", "--log-level", "warning") as server,
        fr.connect(server.address, server.token) as admin,
    ):
        made = admin.create_training({"w": np.zeros(8, np.float32)}, name="t", target_num_updates=1)
        _, token = admin.create_user("stranger", "ACTOR")
        with fr.connect(server.address, token) as stranger:
            found = measure(stranger, made.training_id, made.model_id, calls)
    for method, one in found.items():
        print(f"{method}: foreign {one['foreign']:.0f} us, missing {one['missing']:.0f} us, ratio {one['ratio']:.3f}")
    keep("foreign", {"calls": calls, "microseconds": found})


if __name__ == "__main__":
    main()
