"""Damages of asynchronous trainings, each with the rule that must notice it."""

from chaos.damaged_run import DamagedRun, breaks

STALE = """SELECT u.update_id, t.model_id, u.base_version, u.sha256 FROM round_update u
    JOIN training t ON t.training_id = u.training_id
    JOIN round r ON r.training_id = u.training_id AND r.number = u.number WHERE u.base_version < r.model_version"""


@breaks("buffered_updates_count_once_in_time")
def an_update_is_too_stale(run: DamagedRun) -> None:
    run.sql("UPDATE audit SET facts = json_set(facts, '$.version', 9) WHERE action = 'round_opened' AND subject = '2'")


@breaks("buffered_updates_count_once_in_time")
def an_update_comes_from_a_later_version(run: DamagedRun) -> None:
    run.sql(
        "UPDATE audit SET facts = json_set(facts, '$.updates[0].base_version', 9)"
        " WHERE action = 'updates_counted' AND facts LIKE '%base_version%'"
    )


@breaks("buffered_updates_count_once_in_time")
def an_update_is_in_two_versions(run: DamagedRun) -> None:
    (facts,) = run.one("SELECT facts FROM audit WHERE action = 'updates_counted' AND facts LIKE '%base_version%'")
    run.sql("UPDATE audit SET facts = ? WHERE action = 'updates_counted' AND facts LIKE '%base_version%'", facts)


@breaks("buffered_updates_count_once_in_time")
def a_receipt_is_in_no_version(run: DamagedRun) -> None:
    run.sql("DELETE FROM audit WHERE action = 'updates_counted' AND facts LIKE '%base_version%'")


@breaks("buffered_updates_count_once_in_time")
def a_version_that_updates_may_start_from_is_dropped(run: DamagedRun) -> None:
    _, model_id, version, _ = run.one(STALE)
    run.sql("UPDATE model_version SET stored = 0 WHERE model_id = ? AND version = ? + 1", model_id, version)


@breaks("models_are_right")
def an_update_is_taken_for_one_of_another_version(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET base_version = base_version + 1 WHERE update_id = ?", run.one(STALE)[0])
