"""The operating system: memory, folders, connections and the page cache."""
