"""What every call goes through, whatever it does: log, errors, auth, limits."""
