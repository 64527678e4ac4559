"""Reads; each runs inside a transaction of a verb."""
