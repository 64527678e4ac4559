"""FedNova (Wang et al., Tackling the Objective Inconsistency Problem, NeurIPS 2020, arXiv 2007.07481)."""

from dataclasses import dataclass

from fedround_server.aggregators.rule import LinearRule, NoAggregate, Shares, Updates


@dataclass(frozen=True)
class FedNova(LinearRule):
    """The mean of the updates' steps, times the mean number of steps, weighted by the number of examples.

    A participant with many local steps then has no more influence than its examples give it. For participants that
    use plain gradient descent, the norm of the paper's vectors a is the number of local steps.
    """

    name = "fed_nova"
    needs_steps = True

    def shares(self, updates: Updates) -> Shares:
        """Returns n_i * tau / a_i, over the sum of n: tau is the mean of the a, weighted by n."""
        if min(updates.steps) < 1:
            raise NoAggregate("fed_nova needs the local steps of each update, at least 1")
        total = sum(updates.weights)
        pairs = list(zip(updates.weights, updates.steps, strict=True))
        # Of integers, so that equal numbers of steps give exactly that number.
        effective = sum(weight * steps for weight, steps in pairs) / total
        return Shares([weight * (effective / steps) for weight, steps in pairs], total)
