"""Large aggregations on Ray. Importing this package imports neither Ray nor torch.

The server talks to a process of its own, the driver, which alone loads Ray: Ray ends a process whose cluster is away.
"""
