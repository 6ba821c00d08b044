"""Programs that are stopped before each thing they share with others, and gone on with from any such place.

An actor is an ordinary function that calls the engine, and asks for what is shared (a command to Redis, a statement to
Postgres) through `ask`. Its place is the list of answers that it has had: to go on from there it is called again from
the beginning with those answers, up to the first question that has none. So the engine's own functions are searched
through, whatever their loops and exceptions, without a thread and without a change to them; they must only do the same
when they get the same answers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Ask(Protocol):
    def __call__(self, part: str, *question: Any) -> Any: ...


Program = Callable[[Ask, Any], Any]
"""From its state to its next one."""


class Actor(NamedTuple):
    """`repeats`: begins anew, with the state that it has returned; another one is done when it returns."""

    name: str
    program: Program
    state: Any = None
    repeats: bool = False


class Question(NamedTuple):
    """`part` of the world that has the answer."""

    part: str
    asked: tuple[Any, ...]


class Place(NamedTuple):
    """Where an actor is. `question` None: it is done."""

    actor: int
    state: Any
    answers: tuple[Any, ...]
    question: Question | None


class _Unanswered(BaseException):
    """No `Exception`: the engine must not take it for an error and go on."""

    def __init__(self, question: Question) -> None:
        self.question = question


class Places:
    """All places that were found so far, each with a number: the search compares and keeps numbers only."""

    def __init__(self, actors: Sequence[Actor]) -> None:
        self.actors = actors
        self._known: list[Place] = []
        self._numbers: dict[Place, int] = {}
        self._after: dict[tuple[int, Any], int] = {}

    def begin(self) -> list[int]:
        return [self._number(self._run(number, actor.state, ())) for number, actor in enumerate(self.actors)]

    def __getitem__(self, number: int) -> Place:
        return self._known[number]

    def after(self, number: int, answer: Any) -> int:
        """The place after this one, whose question got this answer."""
        known = self._after.get((number, answer))
        if known is None:
            place = self._known[number]
            reached = self._run(place.actor, place.state, (*place.answers, answer))
            known = self._after[number, answer] = self._number(reached)
        return known

    def _run(self, number: int, state: Any, answers: tuple[Any, ...]) -> Place:
        actor, left = self.actors[number], list(reversed(answers))

        def ask(part: str, *question: Any) -> Any:
            if left:
                return left.pop()
            raise _Unanswered(Question(part, question))

        try:
            following = actor.program(ask, state)
        except _Unanswered as unanswered:
            return Place(number, state, answers, unanswered.question)
        assert not left, f"{actor.name} does not do the same again"
        return self._run(number, following, ()) if actor.repeats else Place(number, following, (), None)

    def _number(self, place: Place) -> int:
        number = self._numbers.get(place)
        if number is None:
            number = self._numbers[place] = len(self._known)
            self._known.append(place)
        return number
