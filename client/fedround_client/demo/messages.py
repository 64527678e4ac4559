"""Messages from a participant to the demo, on standard output: one JSON object per line."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Literal

Activity = Literal["training", "trained", "alone", "done"]


@dataclass(frozen=True)
class Message:
    """A message about the progress of a participant.

    Attributes:
        activity: "training" and "trained" in a round, "alone" after the last one, "done" at the end.
        round: Number of the training round: the version of the model that it starts from.
        accuracies: On the held-out images. "trained": that of the trained model. "done": those of a network trained
            on its own images only, at the start and after each round's number of epochs.
    """

    activity: Activity
    round: int = 0
    accuracies: tuple[float, ...] = ()

    def write(self) -> None:
        """Writes the message to standard output."""
        sys.stdout.write(json.dumps(asdict(self)) + "\n")
        sys.stdout.flush()

    @classmethod
    def read(cls, line: str) -> "Message":
        """Parses a line written by `write`."""
        fields = json.loads(line)
        return cls(fields["activity"], fields["round"], tuple(fields["accuracies"]))
