"""The use cases: the only code that joins store, engine, blobs and hub."""

from fedround_server.coordinator.context import Clock, Context, SystemClock
from fedround_server.coordinator.coordinator import Coordinator

__all__ = ["Clock", "Context", "Coordinator", "SystemClock"]
