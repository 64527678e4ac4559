"""Checks what a server needs on its machine, beside a running server and without disturbing it."""
