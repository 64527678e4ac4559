"""What fedround is about, as plain data and pure functions: no I/O, no frameworks."""
