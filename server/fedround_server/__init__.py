"""fedround's coordination server for federated learning."""

try:
    import fcntl as _  # noqa: F401 -- the server locks its data directory with it; Windows does not have it
except ImportError:
    raise SystemExit(
        "error: the server needs a POSIX system, such as Linux or macOS: it locks its data directory with fcntl, and"
        " limits its worker processes. On Windows, run it in WSL or in a container; participants and the other commands"
        " run on Windows, too."
    ) from None
