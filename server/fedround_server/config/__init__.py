"""The settings of the server: what they are, and where they come from."""

from fedround_server.config.names import replica_name
from fedround_server.config.settings import Settings, problems

__all__ = ["Settings", "problems", "replica_name"]
