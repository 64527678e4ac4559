"""Backups of a data directory and its database, made beside a running server; `layout` describes what a backup is."""
