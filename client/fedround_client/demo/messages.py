"""What a participant tells the demo on standard output: one JSON object a line."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Literal

Activity = Literal["training", "trained", "alone", "done"]


@dataclass(frozen=True)
class Message:
    """What a participant is doing.

    Attributes:
        activity: "training" and "trained" in a round, "alone" after the last one, "done" at the end.
        round: Number of the training round, which is the version of the model that it starts from.
        accuracies: On the held-out images. "trained": of the weights that it made of the round's model. "done": of the
            network that saw its images only, at the start and after every round's worth of epochs.
    """

    activity: Activity
    round: int = 0
    accuracies: tuple[float, ...] = ()

    def say(self) -> None:
        """Writes it."""
        sys.stdout.write(json.dumps(asdict(self)) + "\n")
        sys.stdout.flush()

    @classmethod
    def read(cls, line: str) -> "Message":
        """Reads what say wrote."""
        fields = json.loads(line)
        return cls(fields["activity"], fields["round"], tuple(fields["accuracies"]))
