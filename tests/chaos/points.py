"""All points at which a server can be killed: those with names of their own, and three for each verb that writes."""

import importlib
import pkgutil

from fedround_server.failpoints import POINTS
from fedround_server.store import verbs as store

STEPS = ("begun", "written", "committed")
READERS = {
    *("audit.head", "audit.read", "audit.read_on", "audit.origin"),
    *("credential.identify", "credential.view"),
    *("event.views", "event.open_views", "event.poll", "event.poll_all"),
    *("model.prepare", "model.get", "model.get_version", "model.page_versions", "model.page", "model.metrics"),
    *("model.predicts_with", "model.digests_in_use"),
    *(
        *("submission.admit", "submission.check_part"),
        "round.find_aggregation",
        "round.assigned",
        "round.control_variate",
        "round.awaited",
        "round.pending",
        "round.unfinished",
        "round.current",
        *("round.explain", "round.summarize", "round.page"),
        "round.find_replay",
        *("counterfactual.prepare", "counterfactual.find"),
    ),
    *("training.prepare", "training.get", "training.page"),
    *("viewer.actor_of", "viewer.owner_of", "viewer.page_trainings", "viewer.views", "viewer.open_views"),
    *("server.usage", "replica.presence", "replica.news"),
    *("user.get", "user.page", "credential.admins"),
}
# No client can bring this about: a round fails when the engine is broken, only files of earlier versions have no
# checksums, a restore comes before the server, and one server alone has no other replica. Other tests have all of them.
UNREACHED = {
    *(f"{verb}.{step}" for verb in ("round.fail", "model.keep_checksums", "backup.restored") for step in STEPS),
    *(f"replica.{verb}.{step}" for verb in ("give_up", "publish_presence", "take_over") for step in STEPS),
    *("round.taken_over", "replica.joined", "replica.told", "replica.given_up", "start.claimed"),
}
# Those of a server with an object store, which tests/e2e/test_objects.py kills.
UNREACHED |= {point for point in POINTS if point.startswith("object.")}


def verbs() -> set[str]:
    """All verbs of the store, as their failpoints call them."""
    modules = [importlib.import_module(f"{store.__name__}.{one.name}") for one in pkgutil.iter_modules(store.__path__)]
    return {
        value.__wrapped__.__qualname__.replace("Verbs", "").lower()
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__name__.endswith("Verbs")
        for name, value in vars(kind).items()
        if hasattr(value, "__wrapped__") and not name.startswith("_")
    }


def writers() -> list[str]:
    """The verbs that write; a new one is among them by itself."""
    return sorted(verbs() - READERS)


def all_points() -> list[str]:
    return [*POINTS, *(f"{verb}.{step}" for verb in writers() for step in STEPS)]


def kill_points() -> list[str]:
    """Those that clients can have a server reach."""
    return [point for point in all_points() if point not in UNREACHED]
