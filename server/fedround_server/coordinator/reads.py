"""Reads that need nothing but the store: services call them without a use case in between."""

from fedround_server.store import Store


class Reads:
    """The store's read-only verbs for services, which may not import the store."""

    def __init__(self, store: Store) -> None:
        """Selects the verbs; each documents its arguments, result and errors."""
        self.training = store.trainings.get
        self.trainings = store.trainings.page
        self.assigned_model = store.rounds.assigned
        self.control_variate = store.rounds.control_variate
        self.model = store.models.get
        self.models = store.models.page
        self.model_versions = store.models.page_versions
        self.metrics = store.models.metrics
        self.users = store.users.page
        self.audit_head = store.audit.head
        self.origin = store.audit.origin
