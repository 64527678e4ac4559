"""grpc.health.v1.Health: the service of gRPC, with the method List that it lacks."""

from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from fedround_server.interceptors.wrapping import Call


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]  # it ships no types
    """Reports whether the server serves."""

    def __init__(self, services: Iterable[str]) -> None:
        """Makes the service for all services, by their full names."""
        super().__init__()
        self._services = tuple(services)

    async def report(self, *, serves: bool) -> None:
        """Reports of the server and of each service whether it serves; once the server drains, it does not."""
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *self._services):
            await self.set(service, status)

    async def List(self, request: health_pb2.HealthListRequest, context: Call) -> health_pb2.HealthListResponse:
        """Returns the status of each service, and under an empty name that of the server."""
        asked = [health_pb2.HealthCheckRequest(service=service) for service in ("", *self._services)]
        return health_pb2.HealthListResponse(statuses={one.service: await self.Check(one, context) for one in asked})
