"""Runs that differ in numbers alone, trained in one program: their arrays are lanes of one.

Every member is an ordinary learner in a thread of its own. Where it calls a compiled function, it
waits until every other member has called one, too; what was called alike is then computed at once,
by `jax.vmap` over the stacked arguments. So nothing about learning is written a second time.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qkvbench.backends.jax.training.compilation import Compiled
from qkvbench.backends.jax.training.learner import Learner
from qkvbench.experiment import Experiment


def cannot_join() -> str | None:
    """Why runs cannot be trained in one program; several devices share one run already."""
    count = len(jax.devices())
    return f"Each run is trained over all {count} devices, so seeds are not." if count > 1 else None


def joined(_experiment: Experiment) -> int:
    """One: on a CPU lanes take as long as runs alone or longer (`benchmarks/seeds_together.py`)."""
    return 1


def grouped(experiments: Sequence[Experiment]) -> "Group":
    """The group of these; ValueError where they differ in more than numbers."""
    return Group(experiments)


@dataclass(frozen=True, eq=False)
class Lane:
    """One member's part of an array of all members, not taken out before somebody reads it."""

    whole: jax.Array
    at: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array of its own."""
        return self.whole.shape[1:]

    @property
    def dtype(self) -> Any:
        """As an array of its own."""
        return self.whole.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001
        return np.array(self.whole[self.at], dtype)

    def __float__(self) -> float:
        return float(self.whole[self.at])

    def __int__(self) -> int:
        return int(self.whole[self.at])

    def __bool__(self) -> bool:
        return bool(self.whole[self.at])


@dataclass
class _Call:
    """What a member has called and waits for: a function of its own by number, and arguments."""

    function: "Joined"
    given: tuple[Any, ...]
    runs: bool
    answer: Any = None
    answered: bool = False


@dataclass
class Group:
    """The members of a group, whose calls are answered when all have called.

    All must be learners of experiments that differ in seed and learning rate alone: ValueError
    where they do not.
    """

    experiments: Sequence[Experiment]
    calls: dict[int, _Call] = field(default_factory=dict)
    compiled: dict[int, Compiled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be one program."""
        if reason := cannot_join():
            raise ValueError(reason)
        if len({each.program for each in self.experiments}) > 1:
            raise ValueError(
                "Only runs that differ in their seeds and learning rates can be trained together."
            )
        self.there = set(range(len(self.experiments)))
        self.changed = threading.Condition()

    def learner(self, experiment: Experiment) -> Learner:
        """The learner of this member. It must be used in a thread of its own."""
        member, made = self.experiments.index(experiment), 0

        def compiled(function: Callable[..., Any], *, reused: Sequence[int] = ()) -> Joined:
            nonlocal made
            made += 1
            return Joined(self, member, made, function, reused)

        return Learner(experiment, compiled)

    def leave(self, experiment: Experiment) -> None:
        """The member calls nothing any more, so nobody waits for it."""
        with self.changed:
            self.there.discard(self.experiments.index(experiment))
            self._answer_if_all_have_called()

    def called(self, member: int, call: _Call) -> Any:
        """What the function makes of the arguments, once all members have called something."""
        with self.changed:
            self.calls[member] = call
            self._answer_if_all_have_called()
            self.changed.wait_for(lambda: call.answered)
        if isinstance(call.answer, BaseException):
            raise call.answer
        return call.answer

    def _answer_if_all_have_called(self) -> None:
        if not self.there <= self.calls.keys():
            return
        calls, self.calls = self.calls, {}
        while calls:
            first = calls[min(calls)]
            alike = [member for member in sorted(calls) if _kind(calls[member]) == _kind(first)]
            self._answer([calls.pop(member) for member in alike])
        self.changed.notify_all()

    def _answer(self, calls: Sequence[_Call]) -> None:
        """Compute what was called alike at once."""
        first = calls[0]
        try:
            answers = self._computed(first, [call.given for call in calls])
        except Exception as error:
            # A member that fails must not leave the others waiting.
            answers = [error] * len(calls)
        for call, answer in zip(calls, answers, strict=True):
            call.answer, call.answered = answer, True

    def _computed(self, first: _Call, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        function = first.function
        if function.number not in self.compiled:
            self.compiled[function.number] = Compiled(
                jax.vmap(function.function), reused=function.reused
            )
        compiled = self.compiled[function.number]
        leaves = zip(*(jax.tree.leaves(each) for each in given), strict=True)
        stacked = jax.tree.unflatten(jax.tree.structure(given[0]), list(map(_stacked, leaves)))
        if not first.runs:
            compiled.made_for(*stacked)
            return [None] * len(given)
        whole = compiled(*stacked)
        return [jax.tree.map(lambda each, at=at: Lane(each, at), whole) for at in range(len(given))]


class Joined:
    """A member's compiled function: the same function of all members, computed at once.

    ``seconds`` is what compiling it has taken, once for all of them.
    """

    def __init__(
        self,
        group: Group,
        member: int,
        number: int,
        function: Callable[..., Any],
        reused: Sequence[int],
    ) -> None:
        """The `number`-th function that each member has compiled is the same one."""
        self.group, self.member, self.number = group, member, number
        self.function, self.reused = function, reused

    def __call__(self, *given: Any) -> Any:
        """What the function makes of this, in lanes."""
        return self.group.called(self.member, _Call(self, given, runs=True))

    def made_for(self, *given: Any) -> None:
        """Compile for such arguments."""
        self.group.called(self.member, _Call(self, given, runs=False))

    @property
    def seconds(self) -> float:
        """What compiling has taken so far."""
        compiled = self.group.compiled.get(self.number)
        return 0.0 if compiled is None else compiled.seconds


def _kind(call: _Call) -> tuple[Any, ...]:
    """Calls of one kind are one computation."""
    leaves, structure = jax.tree.flatten(call.given)
    shapes = tuple((each.shape, str(each.dtype)) for each in leaves)
    return call.function.number, call.runs, structure, shapes


def _stacked(leaves: tuple[Any, ...]) -> Any:
    """The members' arrays as one; nothing is copied where they are lanes of one already."""
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
    if all(isinstance(each, Lane) and each.whole is first.whole for each in leaves):
        places = [each.at for each in leaves]
        if places == list(range(len(first.whole))):
            return first.whole
        return first.whole[np.array(places)]
    if all(isinstance(each, np.ndarray | np.generic) for each in leaves):
        return np.stack(leaves)
    return jnp.stack([each.whole[each.at] if isinstance(each, Lane) else each for each in leaves])
