"""Damages of budgets of privacy, and of secrets."""

from chaos.damaged_run import DamagedRun, breaks


@breaks("budgets_are_never_overspent")
def a_round_is_not_charged(run: DamagedRun) -> None:
    run.sql("UPDATE privacy_account SET rounds = rounds - 1")


@breaks("budgets_are_never_overspent")
def a_budget_is_overspent(run: DamagedRun) -> None:
    run.sql("UPDATE privacy_account SET rounds_allowed = rounds - 1")


@breaks("budgets_are_never_overspent")
def a_budget_allows_too_much(run: DamagedRun) -> None:
    run.sql(
        "UPDATE training SET spec = json_set(spec, '$.aggregation.differential_privacy.options.epsilon_budget', 0.01)"
        " WHERE spec LIKE '%differential_privacy%'"
    )


@breaks("secrets_are_gone")
def a_secret_is_left(run: DamagedRun) -> None:
    digest, model_id = run.one("SELECT sha256, model_id FROM model_version WHERE version = 0")
    run.sql(
        "INSERT INTO artifact (model_id, version, kind, sha256, size_bytes, details) VALUES (?, 9, 'tree/key', ?, 9,"
        " ?)",
        model_id,
        digest,
        '{"steps": 1}',
    )
