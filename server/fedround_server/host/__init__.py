"""The operating system: memory, folders and the page cache."""
