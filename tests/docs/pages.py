"""How the code of each page is run, and which is not.

A page with code has one line in PAGES or in NOT_RUN.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import fedround_client as fr
from docs.scene import MODEL, Network, Scene


@dataclass(frozen=True)
class Page:
    """How the code of a page is run.

    Attributes:
        prepare: Prepares the scene, before the first block.
        finish: Uses what the blocks have defined, after the last one.
        skipped: Why commands and blocks are not run, by what they begin with.
        is_long: Whether it takes more than a few seconds, and runs in `make examples`.
    """

    prepare: Callable[[Scene], None] = lambda scene: None
    finish: Callable[[Scene], None] = lambda scene: None
    skipped: dict[str, str] = field(default_factory=dict)
    is_long: bool = False


def audit(scene: Scene) -> None:
    scene.train("MODEL")
    Path("fedround-data").symlink_to(scene.data_dir)


def cohorts(scene: Scene) -> None:
    scene.names["data"] = [1, 2]
    scene.admin.remove_user(scene.client_ids.pop(0))  # the page creates "site 1" itself


def run_train(**training: Any) -> Callable[[Scene], None]:
    """The function `train` of a page, in a round."""

    def finish(scene: Scene) -> None:
        scene.training = training
        scene.take_part(scene.names["train"])

    return finish


def control_variates(scene: Scene) -> None:
    gradients = {name: np.ones_like(array) for name, array in MODEL.items()}
    control = SimpleNamespace(correct=lambda gradients, weights: gradients)
    scene.names |= {"STEPS": 2, "RATE": 0.1, "num_examples": 3, "gradients_of": lambda model: gradients}
    scene.names |= {"round": SimpleNamespace(control=control)}
    parameters = {name: SimpleNamespace(grad=gradient) for name, gradient in gradients.items()}
    scene.names["network"] = SimpleNamespace(named_parameters=parameters.items)


def evaluation(scene: Scene) -> None:
    training = scene.train("MODEL", metric_names=["accuracy"], selection=fr.Selection("accuracy", "MAXIMIZE"))
    scene.training = {"metric_names": ["accuracy"], "uncertainty": fr.Swag(rank=2)}
    scene.names |= {
        "participants": scene.client_ids,
        "share_of_right_answers": lambda model, data: 0.5,
        "my_test_data": [1, 2],
        "train": lambda model, round: (model, 1),
        "train_an_epoch": lambda model: model,
        "num_examples": 3,
        "model_id": training.model_id,
        "images": np.zeros((2, 3), np.float32),
    }


def lora(scene: Scene) -> None:
    network = Network(("q.weight", "q.lora_A.weight", "q.lora_B.weight"))
    scene.names |= {"network": network, "data": [1, 2]}
    Path("network.safetensors").write_bytes(fr.to_safetensors(network.state_dict()))


def models(scene: Scene) -> None:
    network = Network(("encoder.weight", "head.weight", "head.bias", "bn1.running_mean", "q.lora_A", "norm1"))
    base = Path("base.safetensors")
    base.write_bytes(fr.to_safetensors({"base": np.zeros(3, np.float32)}))
    Path("network.safetensors").write_bytes(fr.to_safetensors(MODEL))
    training = scene.train("digits", model=Network().state_dict(), trainable=["head.*", "bn*"])
    scene.model = network.state_dict()
    scene.training = {"external_base_sha256": hashlib.sha256(base.read_bytes()).hexdigest()}
    scene.names |= {
        "network": network,
        "weight": MODEL["weight"],
        "bias": MODEL["bias"],
        "arrays": list(MODEL.values()),
        "adapters": MODEL,
        "base": base,
        "model_id": training.model_id,
        "hashlib": hashlib,
        "math": math,
        "data": [1, 2],
    }


def replay(scene: Scene) -> None:
    scene.actor.upload_model(MODEL, name="MODEL")
    scene.train("digits", keep_update_rounds=9, aggregation=fr.aggregate(fr.FedAvg(), shadows=[fr.Median()]))


def steering(scene: Scene) -> None:
    scene.sites += [scene.admin.create_user(name) for name in ("site1", "site2")]
    scene.names |= {"site1": scene.sites[-2][0].user_id, "site2": scene.sites[-1][0].user_id}


def first_training(scene: Scene) -> None:
    for user_id in scene.client_ids:
        scene.admin.remove_user(user_id)
    scene.admin.remove_user(scene.actor.myself().user_id)  # the page creates all of them


def own_model(scene: Scene) -> None:
    scene.train("circle", metric_names=["accuracy"])


def tracked(scene: Scene) -> None:
    scene.train("digits", metric_names=["accuracy"])


def watched(scene: Scene) -> None:
    scene.wait_for_trainings()


PAGES = {
    "docs/aggregation-stages.md": Page(),
    "docs/aggregation.md": Page(),
    "docs/asynchronous-training.md": Page(),
    "docs/audit.md": Page(
        audit, skipped={"fedround audit verify --head": "the head of another log", "printf": "no command of fedround"}
    ),
    "docs/cohorts.md": Page(cohorts, run_train()),
    "docs/coming-from-rest.md": Page(skipped={"fedround": "needs a file of PyTorch; tests/unit/test_convert.py"}),
    "docs/command.md": Page(
        watched,
        skipped={
            "fedround training pause": "the training has ended",
            "fedround backup": "docs/backup.md",
            "fedround restore": "docs/backup.md",
            "fedround objects": "docs/objects.md",
            "fedround database": "docs/scale-out.md",
            "fedround collect": "for admins",
            "fedround doctor --data-dir": "docs/operations.md",
        },
    ),
    "docs/control-variates.md": Page(control_variates, run_train(aggregation=fr.Scaffold())),
    "docs/evaluation-and-uncertainty.md": Page(
        evaluation,
        skipped={
            "fedround serve": "a second server",
            "# mypackage/models.py": "an outline, without layers",
            "found = client.predict": "needs an architecture: tests/e2e/test_sdk_predict.py",
        },
    ),
    "docs/lora.md": Page(lora),
    "docs/models.md": Page(models),
    "docs/privacy.md": Page(skipped={"pip": "installs"}, is_long=True),
    "docs/replay.md": Page(replay, skipped={"fedround training evaluate": "waits for participants that are connected"}),
    "docs/security.md": Page(
        skipped={
            "fedround serve": "a second server",
            "fedround user revoke-token": "the id of another token",
            "fedround --tls-ca": "needs certificates: tests/service/test_certificates.py",
        }
    ),
    "docs/simulation.md": Page(
        finish=lambda scene: scene.names["make_client"](0)(scene.names["make_model"](), None),
        skipped={
            "fedround simulate": "takes half a minute: tests/simulation",
            "import fedround_client": "takes half a minute: tests/simulation",
        },
    ),
    "docs/tutorial/first-training.md": Page(
        first_training,
        skipped={
            "fedround serve": "the scene's server",
            "cd": "a shell of its own: tests/examples/test_readme.py",
            "FEDROUND_TOKEN=": "a process of its own: tests/examples/test_readme.py",
        },
    ),
    "docs/tutorial/your-own-model.md": Page(own_model, is_long=True),
    "docs/steering.md": Page(steering),
    "docs/tracing.md": Page(
        # In a program of its own, since a process has one tracer provider.
        skipped={
            "pip": "installs",
            "OTEL_EXPORTER_OTLP_ENDPOINT=": "a second server: tests/service/test_traces.py",
            "from opentelemetry": "sets up the process: tests/service/test_traces.py",
        }
    ),
    "docs/trackers.md": Page(
        tracked,
        skipped={
            "fedround track digits --to mlflow": "needs a server of MLflow: tests/e2e/test_track.py",
            "import fedround_client": "connects as the environment says: tests/e2e/test_track.py",
        },
    ),
}
NOT_RUN = {
    "docs/tutorial/two-machines.md": "typed by test_two_machines.py",
    "README.md": "typed by tests/examples/test_readme.py",
    "docs/backup.md": "tests/e2e/test_backup.py and test_restore.py make and restore backups",
    "docs/dashboard.md": "tests/dashboard starts it with these options",
    "docs/logging.md": "tests/service/test_training_log.py asks a log the same",
    "docs/monitoring.md": "tests/service/test_monitoring.py scrapes and watches a server",
    "docs/objects.md": "tests/e2e/test_objects.py has servers with a bucket, and copies files into it and back",
    "docs/operations.md": "typed by tests/operations",
    "docs/scale-out.md": "tests/e2e/test_database_copy.py copies a database, and goes on from the copy",
    "docs/stubs.md": "tests/unit/test_stubs_page.py runs the generators that are there",
    "docs/upgrade.md": "tests/e2e/test_upgrade.py upgrades a data directory",
    "docs/debugging-with-grpcurl.md": "typed by a test of its own",
    "docs/first-day.md": "typed by scripts/transcripts.py",
    "docs/install.md": "tests/packaging installs the wheel",
    "docs/performance.md": "runs the benchmarks",
    "docs/ray.md": "tests/chaos/test_ray.py starts servers with these options",
    "docs/relays.md": "tests/e2e/test_relays.py runs a parent and relays",
    "docs/reliability.md": "runs the tests",
    "docs/replicas.md": "tests/e2e/test_processes.py starts servers with this option",
}
