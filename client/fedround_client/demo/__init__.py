"""A federated training from end to end on this machine: `fedround demo`."""
