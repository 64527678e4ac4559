"""The checker finds what it is there to find: a run's database and files are damaged in one way after the other."""

import copy
import shutil
from pathlib import Path

import pytest

from chaos import (  # noqa: F401  # they register themselves
    branch_damages,
    buffering_damages,
    cohort_damages,
    damages,
    privacy_damages,
)
from chaos.damaged_run import DAMAGES, Damage, DamagedRun
from chaos.history import History
from chaos.invariants import RULES
from chaos.random_training import RandomTraining
from chaos.retrying_client import RetryingClient
from chaos.server_process import RestartableServer
from chaos.user_actions import ShortTraining
from fedround.v1.audit_pb2 import GetAuditHeadRequest

# A few short trainings: with a plain average, a chain, moments, reports, a removed participant, a removal.
SEEDS = (0, 1, 17, 18, 24)
PRIVATE = 3


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> DamagedRun:
    folder = tmp_path_factory.mktemp("invariants")
    with RestartableServer(folder, "") as server:
        first = server.start()
        assert first.wait_serving()
        history = History(folder / "history.jsonl")
        client = RetryingClient(server.address, history, server.admin_token, lambda: None, server.data_dir)
        for seed in SEEDS:
            RandomTraining(client, f"damage {seed}", odd=0, controlled=0, steered=0, buffered=0, private=0).run()
        RandomTraining(client, f"damage {PRIVATE}", odd=0, controlled=0, steered=0, buffered=0, private=1).run()
        ShortTraining(client, "damage").fail()
        ShortTraining(client, "damage").control()
        ShortTraining(client, "damage").over_select()
        ShortTraining(client, "damage", odd=0).branch()
        ShortTraining(client, "damage", odd=0).keep_nothing()
        ShortTraining(client, "damage").be_slow()
        ShortTraining(client, "damage").spend_a_budget()
        client.call(client.admin, client.audit.GetAuditHead, GetAuditHeadRequest())
        client.close()
        history.close()
        first.kill()
        second = server.start()
        assert second.wait_serving()
        second.kill()
    return DamagedRun(server.data_dir, history)


@pytest.fixture
def run(undamaged: DamagedRun, tmp_path: Path) -> DamagedRun:
    shutil.copytree(undamaged.data_dir, tmp_path / "data")
    # The lock of the file is no part of the copy.
    history = copy.copy(undamaged.history)
    history.entries = list(undamaged.history.entries)
    return DamagedRun(tmp_path / "data", history)


@pytest.mark.parametrize(("rule", "damage"), DAMAGES, ids=[damage.__name__ for _, damage in DAMAGES])
def test_a_damage_is_found(rule: str, damage: Damage, run: DamagedRun) -> None:
    damage(run)
    assert rule in run.check()


def test_what_is_not_damaged_is_right(run: DamagedRun) -> None:
    assert run.check() == set()


def test_each_rule_finds_a_damage() -> None:
    assert {rule for rule, _ in DAMAGES} == {rule.__name__ for rule in RULES}
