"""Uploads: from the stream to a file on disk."""
