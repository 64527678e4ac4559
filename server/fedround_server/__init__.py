"""fedround's coordination server for federated learning."""
