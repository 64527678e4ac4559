"""gRPC interceptors, which every call passes: log, errors, authentication, limits, draining."""
