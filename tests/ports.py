"""Ports of servers that tests start."""

import socket


def hold_a_port() -> socket.socket:
    """Takes a port that stays ours while the server is down.

    A socket that is bound but does not listen blocks all other sockets, outgoing connections too. One with
    SO_REUSEADDR, as gRPC's, may listen beside it.
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder
