"""Changes of the round machine; each runs inside a transaction of a verb that holds the training."""
