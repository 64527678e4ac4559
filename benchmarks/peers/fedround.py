"""fedround: a server with all that it does by default, and clients of the SDK."""

from importlib.metadata import version
from typing import Any

import fedround_client as fr
from measure import fedround_server
from peers.common import Processes, Workload, tell, tell_end, tell_round, touch


def take_part(number: int, address: str, token: str, training_id: str) -> None:
    def echo(model: dict[str, Any], _: fr.Round) -> fr.Update:
        touch([model["layer0"]], number)
        return fr.Update(model, num_examples=1)

    with fr.connect(address, token) as client:
        client.participate(echo, training_id=training_id)


def run(workload: Workload) -> None:
    """Runs one training."""
    tell("version", version("fedround"))
    processes = Processes()
    with (
        fedround_server(workload.folder / "data") as server,
        fr.connect(server.address, server.token) as actor,
    ):
        tell("server", server.pid)
        created = [actor.create_user(f"client {number}", "CLIENT") for number in range(workload.clients)]
        training = actor.create_training(
            {f"layer{number}": layer for number, layer in enumerate(workload.layers())},
            name="benchmark",
            target_num_updates=workload.rounds,
            client_ids=[user.user_id for user, _ in created],
        )
        for number, (_, token) in enumerate(created):
            processes.start("client", take_part, number, server.address, token, training.training_id)
        actor.start_training(training.training_id)
        for event in actor.watch(training.training_id):
            if event.WhichOneof("payload") == "round_started":
                tell_round()
        tell_end()
        tell("first", actor.download_model(training.model_id)["layer0"][0])
        processes.join()
