"""What the client and the server of fedround share for messages on the wire."""
