"""gRPC services. A handler decodes the request, calls the coordinator once and encodes the response."""
