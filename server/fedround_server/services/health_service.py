"""grpc.health.v1.Health: gRPC's own, with the method that it leaves out."""

from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from fedround_server.interceptors.wrapping import Call


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]  # it ships no types
    """Tells whether the server serves."""

    def __init__(self, services: Iterable[str]) -> None:
        """Knows the full names of the services."""
        super().__init__()
        self._services = tuple(services)

    async def List(self, request: health_pb2.HealthListRequest, context: Call) -> health_pb2.HealthListResponse:
        """Answers for all services, and under an empty name for the server."""
        asked = [health_pb2.HealthCheckRequest(service=service) for service in ("", *self._services)]
        return health_pb2.HealthListResponse(statuses={one.service: await self.Check(one, context) for one in asked})
