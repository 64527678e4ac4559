"""Damages of the ledger, and of the cohorts that it records."""

from chaos.damaged_run import DamagedRun, breaks

RELEASED = """SELECT e.training_id, e.sequence, u.user_id FROM event e
    JOIN round_update u ON u.training_id = e.training_id AND e.kind = 'WorkNotNeeded'"""


def add_entry_again(run: DamagedRun, action: str) -> None:
    """Adds the first entry of a kind to the audit log once more."""
    columns = "chain, time, user_id, action, training_id, model_id, subject, facts, previous_hash, hash"
    run.sql(
        f"INSERT INTO audit (sequence, {columns}) SELECT sequence + 100000, {columns} FROM audit"
        " WHERE rowid = (SELECT MIN(rowid) FROM audit WHERE action = ?)",
        action,
    )


@breaks("each_submission_has_one_outcome")
def an_update_is_neither_counted_nor_superseded(run: DamagedRun) -> None:
    run.sql("DELETE FROM audit WHERE action = 'updates_counted'")


@breaks("each_submission_has_one_outcome")
def an_update_is_counted_in_two_rounds(run: DamagedRun) -> None:
    add_entry_again(run, "updates_counted")


@breaks("cohorts_are_drawn_by_the_rule")
def a_cohort_has_another_member(run: DamagedRun) -> None:
    run.sql("UPDATE cohort SET user_id = 'other' WHERE user_id = (SELECT MIN(user_id) FROM cohort)")


@breaks("cohorts_are_drawn_by_the_rule")
def a_cohort_is_drawn_with_another_seed(run: DamagedRun) -> None:
    run.sql(
        "UPDATE training SET spec = json_set(spec, '$.cohort.seed', 8) WHERE json_extract(spec, '$.cohort.seed') = 7"
    )


@breaks("cohorts_are_drawn_by_the_rule")
def a_cohort_is_drawn_in_another_order(run: DamagedRun) -> None:
    # With other labels, all three could be asked.
    run.sql("UPDATE training SET spec = json_set(spec, '$.cohort.labels', json('{}')) WHERE spec LIKE '%gpu%'")


@breaks("cohorts_are_drawn_by_the_rule")
def a_member_does_not_have_the_labels(run: DamagedRun) -> None:
    run.sql("UPDATE audit SET facts = json_set(facts, '$.labels', 0) WHERE action = 'user_updated'")


@breaks("cohorts_are_drawn_by_the_rule")
def a_cohort_is_larger_than_the_rule_says(run: DamagedRun) -> None:
    run.sql("UPDATE training SET spec = json_set(spec, '$.cohort.over_selection', 1.0) WHERE spec LIKE '%gpu%'")


@breaks("cohorts_are_drawn_by_the_rule")
def a_cohort_is_drawn_twice(run: DamagedRun) -> None:
    add_entry_again(run, "round_opened")


@breaks("draws_are_as_told")
def another_cohort_was_told(run: DamagedRun) -> None:
    (told,) = run.history.of("draw")
    run.acknowledge("draw", **{**told.facts, "members": ["other"]})


@breaks("draws_are_as_told")
def another_number_was_told(run: DamagedRun) -> None:
    (told,) = run.history.of("draw")
    run.acknowledge("draw", **{**told.facts, "num_eligible": 9})


@breaks("only_members_are_told")
def a_participant_is_told_of_a_round_without_being_asked(run: DamagedRun) -> None:
    training_id, sequence = run.one(RELEASED)[:2]
    run.acknowledge("event", training_id=training_id, sequence=sequence, user_id="other", event="WorkNotNeeded")


@breaks("rounds_take_what_they_need")
def a_round_counts_more_than_it_needs(run: DamagedRun) -> None:
    run.sql("UPDATE round SET needed = 0 WHERE needed = 1")


@breaks("rounds_take_what_they_need")
def no_participant_is_told_that_its_work_is_not_needed(run: DamagedRun) -> None:
    run.sql("UPDATE event SET kind = 'RoundExtended' WHERE kind = 'WorkNotNeeded'")


@breaks("rounds_take_what_they_need")
def a_participant_is_told_that_its_work_is_not_needed_and_it_counts(run: DamagedRun) -> None:
    training_id, sequence, user_id = run.one(RELEASED)
    run.acknowledge("event", training_id=training_id, sequence=sequence, user_id=user_id, event="WorkNotNeeded")
