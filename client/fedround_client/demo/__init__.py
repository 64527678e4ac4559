"""`fedround demo`: a complete federated training on this machine."""
