"""Checks model files, aggregates and predicts. Importing this package does not import torch."""
