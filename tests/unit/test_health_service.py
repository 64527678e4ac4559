"""What the health service reports."""

from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckResponse, HealthListRequest

from fedround_server.services.health_service import HealthService


async def statuses(service: HealthService) -> set[str]:
    context: Any = None
    found = await service.List(HealthListRequest(), context)
    assert set(found.statuses) == {"", "a.A", "b.B"}
    return {HealthCheckResponse.ServingStatus.Name(one.status) for one in found.statuses.values()}


async def test_a_server_serves_or_not_with_all_its_services_and_not_while_it_drains() -> None:
    service = HealthService(["a.A", "b.B"])
    await service.report(serves=True)
    assert await statuses(service) == {"SERVING"}
    await service.report(serves=False)
    assert await statuses(service) == {"NOT_SERVING"}
    await service.report(serves=True)
    assert await statuses(service) == {"SERVING"}
    await service.enter_graceful_shutdown()
    await service.report(serves=True)
    assert await statuses(service) == {"NOT_SERVING"}
