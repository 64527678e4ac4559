"""Which blobs a process has committed, and has not decided about yet."""

from collections import Counter


class Commits:
    """Counts the commits of each blob that await `keep` or `release`; the caller has a lock on the blob."""

    def __init__(self) -> None:
        # Of each new blob, which is removed with the last one that is released.
        self._undecided: dict[str, int] = {}
        # Of each blob, new or not.
        self._commits: Counter[str] = Counter()

    def __contains__(self, sha256: str) -> bool:
        """Returns whether a commit of a blob awaits a decision."""
        return sha256 in self._commits

    def add(self, sha256: str, *, is_new: bool) -> None:
        """Records a commit, of a blob that was not there before or was."""
        self._commits[sha256] += 1
        if is_new or sha256 in self._undecided:
            self._undecided[sha256] = self._undecided.get(sha256, 0) + 1

    def keep(self, sha256: str) -> None:
        """Records that a commit was kept: the blob is not removed with others that are released."""
        self._undecided.pop(sha256, None)
        self._decided(sha256)

    def release(self, sha256: str) -> bool:
        """Records that a commit was released; returns whether the blob is to be removed."""
        self._decided(sha256)
        left = self._undecided.pop(sha256, 0)
        if left > 1:
            self._undecided[sha256] = left - 1
        return left == 1

    def _decided(self, sha256: str) -> None:
        if self._commits[sha256] > 1:
            self._commits[sha256] -= 1
        else:
            del self._commits[sha256]
