"""Transactions by noun."""
