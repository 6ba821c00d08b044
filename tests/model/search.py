"""Breadth first through every order of events: the first violation that is found is one of the shortest.

A state is a tuple of small numbers: the node's contents, what may happen to the node from outside, the source, what one
process holds, and the place of each actor. Every move concerns one actor, or none, and one of the shared parts; what it
does is worked out once and looked up from then on, which leaves the search a few microseconds a state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any, NamedTuple

from tests.model.actors import Actor, Places, Question

State = tuple[int, ...]
Answers = Sequence[tuple[Any, Any]]
"""What may be answered, each with the part after it."""
FIRST_PLACE = 4
_PART_AT = {"node": 0, "outside": 1, "source": 2, "process": 3}


class World(NamedTuple):
    """What a model is made of.

    `answer`: of a part and a question, every answer. `outside`: what happens to the node by itself. `wrong`: of a part,
    what contradicts the source in it, or ''. `is_joined`: nothing comes between this question and the one before it,
    which is to the same part.
    """

    actors: Sequence[Actor]
    node: Any
    outside: Any
    source: Any
    process: Any
    answer: Callable[[str, Any, tuple[Any, ...]], Answers]
    happenings: Callable[[Any, Any], Iterable[tuple[str, Any, Any]]]
    wrong: Mapping[str, Callable[[Any, Any], str]]
    describe: Callable[[Any, Any, Any], str]
    name_question: Callable[[str, tuple[Any, ...], Any], str]
    is_joined: Callable[[Question], bool]


class Violation(Exception):
    """Its text is the way there, a step a line."""


class Searched(NamedTuple):
    states: int
    complete: bool


class _Parts:
    """Values of one shared part, each with a number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        known = self._numbers.get(value)
        if known is None:
            known = self._numbers[value] = len(self.values)
            self.values.append(value)
        return known


class Search:
    def __init__(self, world: World) -> None:
        self.world = world
        self.places = Places(world.actors)
        self.parts = [_Parts() for _ in _PART_AT]
        self._moves: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self._happenings: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self._part_of: dict[int, int] = {}
        self.found: AbstractSet[State] = frozenset()

    def begin(self) -> State:
        world = self.world
        shared = (world.node, world.outside, world.source, world.process)
        return (*[parts.number(value) for parts, value in zip(self.parts, shared, strict=True)], *self.places.begin())

    def run(self, *, most: int = 5_000_000) -> Searched:
        """Raises `Violation`. Gives up, and says so, after `most` states."""
        begin = self.begin()
        came_from: dict[State, State | None] = {begin: None}
        self.found = came_from.keys()
        fine: set[tuple[int, int, int]] = set()
        checks = [(_PART_AT[part], check) for part, check in self.world.wrong.items()]
        frontier = [begin]
        while frontier:
            following: list[State] = []
            for state in frontier:
                for reached in self.successors(state):
                    if reached in came_from:
                        continue
                    came_from[reached] = state
                    following.append(reached)
                    for part, check in checks:
                        seen = (part, reached[part], reached[2])
                        if seen not in fine:
                            wrong = check(self.parts[part].values[seen[1]], self.parts[2].values[seen[2]])
                            if wrong:
                                raise Violation(self._tell(reached, came_from, wrong))
                            fine.add(seen)
            if len(came_from) > most:
                return Searched(len(came_from), complete=False)
            frontier = following
        return Searched(len(came_from), complete=True)

    def settle(self, actor: int, is_settled: Callable[[Any, Any], bool], *, most_steps: int = 60) -> None:
        """From every state that `run` has found, this actor alone reaches a settled node and source. Or `Violation`."""
        at, fine = FIRST_PLACE + actor, set[tuple[int, int, int]]()
        for node, source, place in {(state[0], state[2], state[at]) for state in self.found}:
            way, now = [], (node, source, place)
            while now not in fine:
                way.append(now)
                if is_settled(self.parts[0].values[now[0]], self.parts[2].values[now[1]]):
                    break
                if len(way) > most_steps:
                    raise Violation(
                        f"{self.world.actors[actor].name} alone does not settle this:\n{self._tell_way(way)}"
                    )
                now = self._alone(*now)
            fine.update(way)

    def _alone(self, node: int, source: int, place: int) -> tuple[int, int, int]:
        part = self._part(place)
        value = node if part == 0 else source
        ((after, there),) = self._moves.get((place, value)) or self._work_out(place, part, value)
        return (after, source, there) if part == 0 else (node, after, there)

    def _tell_way(self, way: Sequence[tuple[int, int, int]]) -> str:
        values = [(self.parts[0].values[node], self.parts[2].values[source]) for node, source, _ in way]
        return "\n".join(self.world.describe(node, source, self.world.process) for node, source in values)

    def successors(self, state: State) -> Iterator[State]:
        node, outside = state[0], state[1]
        happenings = self._happenings.get((node, outside))
        if happenings is None:
            happenings = self._work_out_happenings(node, outside)
        for node_after, outside_after in happenings:
            yield (node_after, outside_after, *state[2:])
        moves, part_of = self._moves, self._part_of
        for at in range(FIRST_PLACE, len(state)):
            place = state[at]
            part = part_of.get(place)
            if part is None:
                part = self._part(place)
            if part < 0:
                continue
            reached = moves.get((place, state[part]))
            if reached is None:
                reached = self._work_out(place, part, state[part])
            for part_after, place_after in reached:
                successor = list(state)
                successor[part] = part_after
                successor[at] = place_after
                yield tuple(successor)

    # --- worked out once ---

    def _part(self, place: int) -> int:
        question = self.places[place].question
        part = self._part_of[place] = -1 if question is None else _PART_AT[question.part]
        return part

    def _work_out(self, place: int, part: int, value: int) -> tuple[tuple[int, int], ...]:
        reached = self._moves[place, value] = tuple(
            {(after, there): None for _, after, there in self._told(place, part, value)}
        )
        return reached

    def _told(self, place: int, part: int, value: int) -> Iterator[tuple[Any, int, int]]:
        question = self.places[place].question
        assert question is not None
        for answer, after in self.world.answer(question.part, self.parts[part].values[value], question.asked):
            there = self.places.after(place, answer)
            while (next_one := self.places[there].question) is not None and self.world.is_joined(next_one):
                ((joined, after),) = self.world.answer(next_one.part, after, next_one.asked)
                there = self.places.after(there, joined)
            yield answer, self.parts[part].number(after), there

    def _work_out_happenings(self, node: int, outside: int) -> tuple[tuple[int, int], ...]:
        told = self._told_happenings(node, outside)
        reached = self._happenings[node, outside] = tuple([(after, left) for _, after, left in told])
        return reached

    def _told_happenings(self, node: int, outside: int) -> Iterator[tuple[str, int, int]]:
        values = self.parts[0].values[node], self.parts[1].values[outside]
        for name, node_after, outside_after in self.world.happenings(*values):
            yield name, self.parts[0].number(node_after), self.parts[1].number(outside_after)

    # --- telling ---

    def _shared(self, state: State) -> tuple[Any, Any, Any]:
        node, source, process = (self.parts[at].values[state[at]] for at in (0, 2, 3))
        return node, source, process

    def _tell(self, state: State, came_from: dict[State, State | None], wrong: str) -> str:
        way = [state]
        while (before := came_from[way[-1]]) is not None:
            way.append(before)
        way.reverse()
        steps = [self._step(before, after) for before, after in pairwise(way)]
        width = max(map(len, steps), default=0)
        lines = [
            f"{number:3}. {step:{width}}   {self.world.describe(*self._shared(after))}"
            for number, (step, after) in enumerate(zip(steps, way[1:], strict=True), 1)
        ]
        return "\n".join([wrong, *lines])

    def _step(self, before: State, after: State) -> str:
        for name, node, outside in self._told_happenings(before[0], before[1]):
            if after == (node, outside, *before[2:]):
                return name
        for at in range(FIRST_PLACE, len(before)):
            place, part = before[at], self._part(before[at])
            if part < 0:
                continue
            for answer, value, there in self._told(place, part, before[part]):
                expected = list(before)
                expected[part], expected[at] = value, there
                if tuple(expected) == after:
                    question = self.places[place].question
                    assert question is not None
                    actor = self.world.actors[self.places[place].actor].name
                    return f"{actor}: {self.world.name_question(question.part, question.asked, answer)}"
        raise AssertionError("no move leads here")
