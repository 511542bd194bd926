"""Every history of a case: whenever several things may happen next each of them does, in a history of its own.

A history is told by a function that asks `Telling.choose` what happens. To go another way at one of its questions it is
told once more from its beginning, with the same choices up to there. Where two histories come to the same question in
the same state, only the first is followed: what comes after is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: A history in which so much happens without a choice goes round in circles.
_MOST_EVENTS = 1000


class Violated(Exception):
    """A property does not hold."""


class Known(BaseException):
    """Not an error, and not to be caught by what is explored: what follows has been, or will be, told elsewhere."""


class Telling:
    """One history: the choices given, then the first option of each question. ``events``: what happened, for people."""

    def __init__(self, choices: Sequence[int], ask: Callable[[tuple[int, ...], int, object], None]) -> None:
        self._given = choices
        self._made: list[int] = []
        self._ask = ask
        self.events: list[str] = []

    def note(self, event: str) -> None:
        """Something happened that was not a choice. Raises Violated when that never ends."""
        self.events.append(event)
        if len(self.events) > _MOST_EVENTS:
            raise Violated("it goes on for ever")

    def choose(self, options: Sequence[str], state: Callable[[], object]) -> int:
        """Which of the options happens. ``state`` must be equal where, and only where, the same can follow."""
        choice = 0
        if len(options) > 1:
            if len(self._made) == len(self._given):
                self._ask(tuple(self._made), len(options), state())
                self._given = [*self._given, 0]
            choice = self._given[len(self._made)]
            self._made.append(choice)
        if options[choice]:
            self.note(options[choice])
        return choice


@dataclass(frozen=True)
class Outcome:
    """What was explored: ``states`` different questions, ``histories`` told to their end.

    ``events``: the shortest history found that violates a property, and ``violation`` how; empty when none does.
    ``whole``: nothing was left out for want of tellings.
    """

    states: int
    histories: int
    violation: str
    events: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        if not self.violation:
            return f"{self.states} states, {self.histories} histories to their end: no violation"
        told = "\n".join(f"{number:4}. {event}" for number, event in enumerate(self.events, 1))
        return f"{told}\n   => {self.violation}"


def explore(tell: Callable[[Telling], None], most: int = 1_000_000, *, shortest: bool = False) -> Outcome:
    """Tell all histories, ``most`` of them at most, until one raises Violated.

    ``shortest``: the first violation found is then one with the fewest choices; else it takes less time.
    """
    seen: set[object] = set()
    waiting: deque[tuple[int, ...]] = deque([()])
    histories = tellings = 0

    def ask(choices: tuple[int, ...], options: int, state: object) -> None:
        if state in seen:
            raise Known
        seen.add(state)
        waiting.extend((*choices, option) for option in range(0 if shortest else 1, options))
        if shortest:
            raise Known

    while waiting and tellings < most:
        telling = Telling(waiting.popleft() if shortest else waiting.pop(), ask)
        tellings += 1
        try:
            tell(telling)
        except Known:
            continue
        except Violated as violated:
            return Outcome(len(seen), histories, str(violated), tuple(telling.events), False)
        histories += 1
    return Outcome(len(seen), histories, "", (), not waiting)
