"""Damages of a run, each with the rule that must notice it."""

from chaos.damaged_run import DamagedRun, breaks
from damage import flip

COUNTED = """SELECT u.update_id, u.training_id, u.number, u.user_id, u.sha256 FROM round_update u
    JOIN round r ON r.training_id = u.training_id AND r.number = u.number AND r.state = 'DONE'
    JOIN cohort c ON c.training_id = u.training_id AND c.number = u.number AND c.user_id = u.user_id AND NOT c.removed
    JOIN training t ON t.training_id = u.training_id AND t.remove_time IS NULL"""
TRAINED = (
    COUNTED + " WHERE r.kind = 'TRAIN' AND u.stored AND t.spec LIKE '%fed_avg%'"
    " AND t.spec NOT LIKE '%differential_privacy%' ORDER BY t.training_id, u.number DESC"
)
"""Updates whose files are kept, and whose versions have no noise, so that a difference shows."""
MADE = """SELECT v.sha256, a.sha256 AS posterior, v.model_id, v.version, t.training_id FROM model_version v
    LEFT JOIN artifact a ON a.model_id = v.model_id AND a.version = v.version
    JOIN training t ON t.model_id = v.model_id WHERE v.stored AND v.version > 0 AND t.state = 'COMPLETED'
    AND t.spec NOT LIKE '%differential_privacy%'"""


@breaks("receipts_stand")
def an_update_is_lost(run: DamagedRun) -> None:
    run.sql("DELETE FROM round_update WHERE update_id = ?", run.one(TRAINED)[0])


@breaks("receipts_stand")
def an_update_weighs_more(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET num_examples = num_examples + 1 WHERE update_id = ?", run.one(TRAINED)[0])


@breaks("receipts_stand")
def a_report_changes(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET metrics = '{}' WHERE sha256 IS NULL")


@breaks("updates_count_once")
def an_update_is_there_twice(run: DamagedRun) -> None:
    (index,) = run.one("SELECT name FROM sqlite_master WHERE tbl_name = 'round_update' AND sql LIKE '%UNIQUE%user_id%'")
    run.sql(f"DROP INDEX {index}")
    columns = "training_id, number, user_id, sha256, size_bytes, num_examples, metrics, accept_time"
    chosen = run.one(TRAINED)[0]
    run.sql(
        f"INSERT INTO round_update (update_id, {columns}) SELECT 'twin', {columns} FROM round_update"
        " WHERE update_id = ?",
        chosen,
    )


@breaks("updates_count_once")
def an_update_is_left_out(run: DamagedRun) -> None:
    _, *key, _ = run.one(TRAINED)
    run.sql("UPDATE cohort SET removed = 1 WHERE training_id = ? AND number = ? AND user_id = ?", *key)


@breaks("repeated_answers_are_true")
def an_update_that_counts_is_said_to_be_superseded(run: DamagedRun) -> None:
    _, training_id, number, user_id, _ = run.one(TRAINED)
    run.acknowledge("superseded", training_id=training_id, round=number, user_id=user_id)


@breaks("repeated_answers_are_true")
def an_update_that_is_left_out_is_acknowledged_again(run: DamagedRun) -> None:
    an_update_is_left_out(run)
    _, training_id, number, user_id, _ = run.one(TRAINED.replace("AND NOT c.removed", "AND c.removed"))
    run.acknowledge("sent_again", training_id=training_id, round=number, user_id=user_id)


@breaks("updates_count_once")
def an_update_belongs_to_no_round(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET number = 999 WHERE update_id = ?", run.one(TRAINED)[0])


@breaks("updates_count_once")
def a_round_counts_one_more(run: DamagedRun) -> None:
    run.sql("UPDATE event SET payload = json_set(payload, '$.num_updates', 99) WHERE kind = 'RoundClosed'")


@breaks("updates_count_once")
def an_arrival_is_counted_twice(run: DamagedRun) -> None:
    run.sql("UPDATE round SET arrived = arrived + 1 WHERE number = 0")


@breaks("damaged_updates_never_count")
def a_damaged_update_is_counted(run: DamagedRun) -> None:
    sha256 = _acknowledge_damage(run, size_bytes=1)
    flip(run.blob(sha256), -1)


@breaks("damaged_updates_never_count")
def a_damaged_update_that_no_journal_had_is_counted(run: DamagedRun) -> None:
    _acknowledge_damage(run, size_bytes=2 << 20)


def _acknowledge_damage(run: DamagedRun, size_bytes: int) -> str:
    update_id, training_id, number, _, sha256 = run.one(TRAINED)
    facts = {"update_id": update_id, "sha256": sha256, "size_bytes": size_bytes}
    run.acknowledge("damaged", training_id=training_id, round=number, **facts)
    return str(sha256)


@breaks("damaged_updates_never_count")
def an_update_is_lost_without_a_reason(run: DamagedRun) -> None:
    run.sql("UPDATE event SET kind = 'UpdateLost' WHERE kind = 'UpdateAccepted'")


@breaks("failures_stand")
def a_failure_is_lost(run: DamagedRun) -> None:
    run.sql("DELETE FROM participant_failure WHERE user_id = (SELECT MIN(user_id) FROM participant_failure)")


@breaks("failures_stand")
def a_failure_is_not_counted(run: DamagedRun) -> None:
    run.sql("UPDATE round SET failed = failed - 1 WHERE failed > 0")


@breaks("failures_stand")
def a_failure_is_not_told(run: DamagedRun) -> None:
    run.sql("UPDATE event SET payload = json_set(payload, '$.reason', 'OTHER') WHERE kind = 'ParticipantFailed'")


@breaks("failures_stand")
def a_round_waited_for_too_few(run: DamagedRun) -> None:
    run.sql("UPDATE round SET arrived = 0 WHERE state = 'DONE'")


@breaks("rounds_commit_once")
def a_round_is_committed_twice(run: DamagedRun) -> None:
    (model_id, version) = run.one(f"SELECT model_id, MAX(version) FROM ({MADE})")
    columns = "sha256, size_bytes, create_time, stored"
    run.sql(
        f"INSERT INTO model_version (model_id, version, {columns}) SELECT model_id, version + 1, {columns}"
        " FROM model_version WHERE model_id = ? AND version = ?",
        *(model_id, version),
    )


@breaks("rounds_commit_once")
def a_round_is_closed_twice(run: DamagedRun) -> None:
    run.sql(
        "UPDATE event SET kind = 'RoundClosed', payload = json_object('round', 0, 'num_updates', 1) WHERE sequence = 1"
    )


@breaks("rounds_commit_once")
def a_round_is_open_again(run: DamagedRun) -> None:
    run.sql("UPDATE round SET state = 'OPEN', epoch = 0 WHERE state = 'DONE'")


@breaks("rounds_commit_once")
def a_round_has_no_number(run: DamagedRun) -> None:
    run.sql("UPDATE round SET number = number + 1000 WHERE number > 0")


@breaks("models_are_right")
def a_model_has_a_wrong_bit(run: DamagedRun) -> None:
    digest, _, *key = run.one(MADE)
    run.sql(
        "UPDATE model_version SET sha256 = ? WHERE model_id = ? AND version = ?", run.replace_blob(digest), *key[:2]
    )


@breaks("models_are_right")
def a_posterior_has_a_wrong_bit(run: DamagedRun) -> None:
    _, digest, *key = run.one(MADE + " AND a.sha256 IS NOT NULL")
    changed = run.replace_blob(digest)
    run.sql("UPDATE artifact SET sha256 = ? WHERE model_id = ? AND version = ?", changed, *key[:2])


@breaks("copies_keep_their_states")
def a_copy_has_a_state_that_its_source_has_not(run: DamagedRun) -> None:
    model_id, digest = run.one("SELECT model_id, sha256 FROM model_version WHERE version = 0")
    run.sql("UPDATE model SET source_model_id = ?, source_version = 0 WHERE model_id = ?", "another", model_id)
    run.sql(
        "INSERT INTO artifact (model_id, version, kind, sha256, size_bytes, details) VALUES (?, 0, 'adam/m', ?, 9, ?)",
        model_id,
        digest,
        '{"steps": 1}',
    )


@breaks("models_are_right")
def a_model_is_made_without_an_update(run: DamagedRun) -> None:
    run.sql("DELETE FROM round_update WHERE update_id = ?", run.one(TRAINED)[0])


@breaks("logs_have_no_gaps")
def an_event_is_lost(run: DamagedRun) -> None:
    run.sql("DELETE FROM event WHERE sequence = 2")


@breaks("logs_have_no_gaps")
def the_last_events_are_lost(run: DamagedRun) -> None:
    run.sql("DELETE FROM event WHERE kind = 'TrainingFinished'")
    run.sql("UPDATE training SET last_sequence = last_sequence - 1 WHERE state = 'COMPLETED'")


@breaks("logs_have_no_gaps")
def an_update_is_not_told(run: DamagedRun) -> None:
    run.sql("UPDATE event SET payload = json_set(payload, '$.update_id', 'x') WHERE kind = 'UpdateAccepted'")


@breaks("events_stand")
def an_event_that_was_told_never_happened(run: DamagedRun) -> None:
    run.sql(
        "UPDATE event SET kind = 'ClientRemoved', payload = '{\"client_id\": \"x\"}' WHERE kind = 'TrainingStarted'"
    )


@breaks("closed_rounds_stay_closed")
def an_update_comes_after_the_close(run: DamagedRun) -> None:
    training_id, sequence = run.one("SELECT training_id, sequence FROM event WHERE kind = 'RoundClosed'")
    for old, new in ((sequence, -1), (sequence - 1, sequence), (-1, sequence - 1)):
        run.sql("UPDATE event SET sequence = ? WHERE training_id = ? AND sequence = ?", new, training_id, old)


@breaks("closed_rounds_stay_closed")
def one_update_too_many_is_accepted(run: DamagedRun) -> None:
    run.sql("UPDATE event SET payload = json_set(payload, '$.updates_arrived', 99) WHERE kind = 'UpdateAccepted'")


@breaks("blobs_are_themselves")
def a_bit_of_a_blob_flips(run: DamagedRun) -> None:
    path = run.blob(run.one(MADE)[0])
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@breaks("blobs_are_themselves")
def a_temporary_file_is_left(run: DamagedRun) -> None:
    (run.data_dir / "tmp/rest").touch()


@breaks("references_lead_somewhere")
def the_file_of_an_update_is_gone(run: DamagedRun) -> None:
    run.blob(run.one(TRAINED)[4]).unlink()


@breaks("references_lead_somewhere")
def the_file_of_a_posterior_is_short(run: DamagedRun) -> None:
    path = run.blob(run.one(MADE + " AND a.sha256 IS NOT NULL")[1])
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])


@breaks("chains_assign_each_model_once")
def a_participant_is_assigned_its_own_model(run: DamagedRun) -> None:
    run.sql(
        "UPDATE assignment SET sha256 = (SELECT sha256 FROM round_update u WHERE u.training_id = assignment.training_id"
        " AND u.number = assignment.number - 1 AND u.user_id = assignment.user_id)"
    )


@breaks("acknowledged_changes_stand")
def a_training_is_created_twice(run: DamagedRun) -> None:
    run.acknowledge("created", training_id="another", request_id="x", model_id="y")


@breaks("acknowledged_changes_stand")
def a_training_is_not_started(run: DamagedRun) -> None:
    run.sql("UPDATE training SET start_time = NULL")


@breaks("acknowledged_changes_stand")
def a_training_is_not_removed(run: DamagedRun) -> None:
    run.acknowledge("removed", training_id=run.one(MADE)[4])


@breaks("acknowledged_changes_stand")
def a_participant_is_not_registered(run: DamagedRun) -> None:
    run.acknowledge("registered", training_id=run.one(MADE)[4], user_id="unknown")


@breaks("acknowledged_changes_stand")
def a_participant_has_not_left(run: DamagedRun) -> None:
    run.acknowledge("client_removed", training_id=run.one(MADE)[4], user_id="unknown")


@breaks("acknowledged_changes_stand")
def labels_are_lost(run: DamagedRun) -> None:
    run.sql("UPDATE users SET labels = '{}' WHERE labels LIKE '%gpu%'")


@breaks("acknowledged_changes_stand")
def a_user_is_lost(run: DamagedRun) -> None:
    run.acknowledge("user", user_id="unknown")


@breaks("acknowledged_changes_stand")
def a_removed_user_is_there(run: DamagedRun) -> None:
    run.acknowledge("user_removed", user_id=run.one("SELECT user_id FROM users WHERE remove_time IS NULL")[0])


@breaks("the_audit_log_is_chained")
def an_entry_of_the_audit_log_is_changed(run: DamagedRun) -> None:
    run.sql("UPDATE audit SET user_id = 'x' WHERE sequence = 3")


@breaks("the_audit_log_is_chained")
def an_entry_of_the_audit_log_is_gone(run: DamagedRun) -> None:
    run.sql("DELETE FROM audit WHERE sequence = (SELECT MAX(sequence) FROM audit)")


LAST = "SELECT chain, MAX(sequence) FROM audit WHERE chain <> '' GROUP BY chain"


@breaks("the_audit_log_is_chained")
def the_head_of_an_audit_chain_is_gone(run: DamagedRun) -> None:
    run.sql("DELETE FROM audit_head WHERE chain = ?", run.one(LAST)[0])


@breaks("the_audit_log_is_chained")
def the_end_of_an_audit_chain_is_cut_off(run: DamagedRun) -> None:
    chain, sequence = run.one(LAST)
    run.sql("DELETE FROM audit WHERE chain = ? AND sequence = ?", chain, sequence)
    run.sql(
        "UPDATE audit_head SET sequence = sequence - 1, hash = (SELECT hash FROM audit a"
        " WHERE a.chain = audit_head.chain AND a.sequence = audit_head.sequence - 1) WHERE chain = ?",
        chain,
    )


@breaks("the_ledger_knows_what_counts")
def the_ledger_lacks_an_update(run: DamagedRun) -> None:
    run.sql("DELETE FROM audit WHERE action = 'updates_counted'")


@breaks("the_ledger_knows_what_counts")
def an_update_weighs_more_than_the_ledger_says(run: DamagedRun) -> None:
    run.sql("UPDATE round_update SET num_examples = num_examples + 1 WHERE update_id = ?", run.one(TRAINED)[0])


@breaks("trainings_end")
def a_round_waits(run: DamagedRun) -> None:
    run.sql("UPDATE round SET state = 'AGGREGATING' WHERE state = 'DONE'")


@breaks("trainings_end")
def a_training_runs(run: DamagedRun) -> None:
    run.sql("UPDATE training SET state = 'ONGOING' WHERE remove_time IS NULL")


@breaks("aggregations_do_not_fail")
def a_round_was_not_aggregated(run: DamagedRun) -> None:
    run.sql("UPDATE training SET failure_reason = 'AGGREGATION_FAILED', failure_message = 'overflow'")


@breaks("aggregations_do_not_fail")
def a_round_has_too_few_updates_as_it_says(run: DamagedRun) -> None:
    message = "the round cannot be aggregated: median needs 3 updates, and there are 2"
    run.sql("UPDATE training SET failure_reason = 'AGGREGATION_FAILED', failure_message = ?", message)


@breaks("changes_are_made_once")
def a_pause_is_lost(run: DamagedRun) -> None:
    run.acknowledge("controlled", training_id=run.one(MADE)[4], request_id="unknown", what="PauseTraining")


@breaks("changes_are_made_once")
def a_change_was_made_twice(run: DamagedRun) -> None:
    run.sql("DELETE FROM control_request WHERE action = 'update_config'")


@breaks("changes_are_made_once")
def a_stop_is_lost(run: DamagedRun) -> None:
    run.sql("UPDATE training SET stop = NULL WHERE stop IS NOT NULL")


@breaks("no_round_opens_when_it_may_not")
def a_round_opens_after_a_stop(run: DamagedRun) -> None:
    run.sql("UPDATE event SET kind = 'StopRequested' WHERE kind = 'TrainingStarted' AND audience = 'all'")


@breaks("no_round_opens_when_it_may_not")
def a_training_that_was_stopped_does_not_say_so(run: DamagedRun) -> None:
    run.sql("UPDATE training SET stop = 'NOW' WHERE state = 'COMPLETED' AND stop IS NULL")


@breaks("configurations_are_as_recorded")
def a_subscriber_gets_another_configuration(run: DamagedRun) -> None:
    training_id, number = run.one("SELECT training_id, number FROM round")
    run.acknowledge("config", training_id=training_id, round=number, config={"rate": 0.123})


@breaks("no_unexpected_answers")
def a_call_was_answered_strangely(run: DamagedRun) -> None:
    run.acknowledge("unexpected", reason="INTERNAL")
