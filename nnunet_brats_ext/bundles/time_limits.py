"""How many networks a time limit leaves, from what the patients before have taken. Loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nnunet_brats_ext.bundles.contents import BundledSystem

MARGIN = 1.2  # a patient may take this much longer than expected


@dataclass
class TimeLimit:
    """Systems from the largest to the smallest, what each costs, and the time by which all patients are to be done.

    The first patient is segmented by the smallest system, which shows how fast the machine is and gives it a label map
    for certain; what time is left then goes to larger systems, for that patient too, last. costs: proportional to the
    time of the networks. deadline, clock: in seconds.
    """

    systems: Sequence[BundledSystem]
    costs: Sequence[float]
    deadline: float
    clock: Callable[[], float]
    per_cost: float | None = field(default=None, init=False)  # seconds
    besides: float = field(default=0.0, init=False)  # seconds of a patient without its networks

    def next_level(self, patients: int, has_label_map: bool) -> int | None:
        """The system for the next of so many patients that are left; None: the smallest, which it has been through."""
        smallest = len(self.systems) - 1
        if self.per_cost is None:
            return smallest
        seconds = [MARGIN * (self.besides + self.per_cost * cost) for cost in self.costs]
        level = choose_level(seconds, self.deadline - self.clock(), patients)
        return None if has_label_map and level == smallest else level

    def measure(self, level: int, seconds: float, of_networks: float) -> None:
        """Note what a patient took in all, and its networks; the slowest counts."""
        self.per_cost = max(self.per_cost or 0.0, of_networks / self.costs[level])
        self.besides = max(self.besides, seconds - of_networks)


def choose_level(seconds: Sequence[float], left: float, patients: int) -> int:
    """The first of some systems by which so many patients are done in the seconds left; else the last, the smallest."""
    return next((level for level, each in enumerate(seconds) if each * patients <= left), len(seconds) - 1)
