"""Reads of the requests by which trainings were controlled."""

from fedround_server.store.tables.control_schema import ControlRequestRow


def find_control_request(training_id: str, request_id: str) -> ControlRequestRow | None:
    """Returns a request that was carried out."""
    row: ControlRequestRow | None = ControlRequestRow.get_or_none(
        ControlRequestRow.training_id == training_id, ControlRequestRow.request_id == request_id
    )
    return row
