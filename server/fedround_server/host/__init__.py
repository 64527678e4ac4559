"""The operating system: memory and the page cache."""
