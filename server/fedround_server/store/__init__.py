"""What fedround remembers: verbs in domain words, one transaction each, over SQLite or PostgreSQL."""

from fedround_server.store.store import Store

__all__ = ["Store"]
