"""The connections of a store."""

from fedround_server.store.db import connection


def test_connections_to_postgresql_notice_a_lost_network_soon_unless_the_url_says_otherwise() -> None:
    found = connection.connect("postgresql://db.example/fedround").connect_params
    assert (found["tcp_user_timeout"], found["keepalives_idle"]) == (10_000, 5)
    found = connection.connect("postgresql://db.example/fedround?tcp_user_timeout=60000").connect_params
    assert found["tcp_user_timeout"] == "60000"
