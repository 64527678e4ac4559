"""grpc.health.v1.Health: gRPC's implementation, with the method that it lacks."""

from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from fedround_server.interceptors.wrapping import Call


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]  # it ships no types
    """Reports the health of the server and of its services."""

    def __init__(self, services: Iterable[str]) -> None:
        """Creates the service for services with these full names."""
        super().__init__()
        self._services = tuple(services)

    async def List(self, request: health_pb2.HealthListRequest, context: Call) -> health_pb2.HealthListResponse:
        """Returns the health of all services, and that of the server under the empty name."""
        asked = [health_pb2.HealthCheckRequest(service=service) for service in ("", *self._services)]
        return health_pb2.HealthListResponse(statuses={one.service: await self.Check(one, context) for one in asked})
