"""What the client and the server of fedround do alike for messages on their way."""
