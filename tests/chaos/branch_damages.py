"""Damages of side branches, and of what is known of dropped updates."""

from chaos.damaged_run import DamagedRun, breaks

SHADOW = """SELECT v.sha256, v.model_id, v.version, s.training_id FROM model_version v
    JOIN shadow s ON s.model_id = v.model_id WHERE v.version > 0 ORDER BY s.training_id, v.version DESC, s.position"""


@breaks("branches_are_whole")
def a_shadow_is_a_version_behind(run: DamagedRun) -> None:
    _, model_id, version, _ = run.one(SHADOW)
    run.sql("DELETE FROM model_version WHERE model_id = ? AND version = ?", model_id, version)
    run.sql("UPDATE model SET version = version - 1 WHERE model_id = ?", model_id)


@breaks("branches_are_whole")
def a_version_of_a_shadow_is_not_in_the_ledger(run: DamagedRun) -> None:
    run.sql("DELETE FROM audit WHERE action = 'shadow_version_made'")


@breaks("branches_are_whole")
def half_a_counterfactual_is_left(run: DamagedRun) -> None:
    (model_id,) = run.one("SELECT model_id FROM audit WHERE action = 'counterfactual_created'")
    run.sql("DELETE FROM model_version WHERE model_id = ? AND version = 2", model_id)


@breaks("branches_are_whole")
def a_counterfactual_is_lost(run: DamagedRun) -> None:
    (model_id,) = run.one("SELECT model_id FROM audit WHERE action = 'counterfactual_created'")
    for table in ("model", "model_version"):
        run.sql(f"DELETE FROM {table} WHERE model_id = ?", model_id)


@breaks("shadows_are_right")
def a_shadow_has_a_wrong_bit(run: DamagedRun) -> None:
    digest, model_id, version, _ = run.one(SHADOW)
    changed = run.replace_blob(digest)
    run.sql("UPDATE model_version SET sha256 = ? WHERE model_id = ? AND version = ?", changed, model_id, version)


@breaks("shadows_are_right")
def a_shadow_forgets_its_steps(run: DamagedRun) -> None:
    run.sql(
        "UPDATE artifact SET details = json_set(details, '$.steps', 7) WHERE version > 0"
        " AND model_id IN (SELECT model_id FROM shadow)"
    )


@breaks("shadows_are_right")
def a_shadow_failed_without_a_reason(run: DamagedRun) -> None:
    run.sql("UPDATE audit SET facts = json_set(facts, '$.problem', 'bad') WHERE action = 'shadow_version_made'")


@breaks("updates_are_kept_by_the_rule")
def an_update_is_kept_too_long(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET stored = 1 WHERE sha256 IS NOT NULL AND NOT stored")


@breaks("updates_are_kept_by_the_rule")
def an_update_is_dropped_too_early(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET stored = 0 WHERE stored")


@breaks("updates_are_kept_by_the_rule")
def dropped_updates_count_as_stored(run: DamagedRun) -> None:
    run.sql("UPDATE training SET stored_bytes = stored_bytes + 1 WHERE stored_bytes = 0 OR stored_bytes > 0")


@breaks("models_count_their_bytes")
def a_version_is_not_counted(run: DamagedRun) -> None:
    run.sql("UPDATE model SET stored_bytes = stored_bytes - 1 WHERE version > 0")
