"""All points at which a server can be killed: those with names of their own, and three for each verb that writes."""

from fedround_server.failpoints import POINTS
from fedround_server.store.model import ModelVerbs
from fedround_server.store.round import RoundVerbs
from fedround_server.store.training import TrainingVerbs
from fedround_server.store.user import UserVerbs

STEPS = ("begun", "written", "committed")
READERS = {
    *("model.find_upload", "model.get", "model.get_version", "model.page_versions", "model.page", "model.metrics"),
    *("model.predicts_with", "model.digests_in_use"),
    *("round.admit", "round.find_aggregation", "round.dealt", "round.unfinished", "round.current", "round.explain"),
    *("training.prepare", "training.get", "training.page"),
    *("user.get", "user.find_by_token", "user.page", "user.has_admin"),
}
# No client can bring this about: a round fails when the engine is broken. The contract tests have it.
UNREACHED = {f"round.fail.{step}" for step in STEPS}


def writers() -> list[str]:
    """The store's verbs that write; a new one is among them by itself."""
    found = [
        f"{kind.__name__.removesuffix('Verbs').lower()}.{name}"
        for kind in (ModelVerbs, RoundVerbs, TrainingVerbs, UserVerbs)
        for name, value in vars(kind).items()
        if hasattr(value, "__wrapped__") and not name.startswith("_")
    ]
    return sorted(set(found) - READERS)


def all_points() -> list[str]:
    return [*POINTS, *(f"{verb}.{step}" for verb in writers() for step in STEPS)]


def kill_points() -> list[str]:
    """Those that clients can have a server reach."""
    return [point for point in all_points() if point not in UNREACHED]
