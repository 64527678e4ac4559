"""gRPC services: decode, call the coordinator once, encode."""
