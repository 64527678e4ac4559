"""Numbers: the gate for model files, and aggregation. Importing this package does not import torch."""
