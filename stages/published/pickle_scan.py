"""A look through a pickle before any reader follows it: what it would make is counted, and nothing is made.

A pickle is a program for a small stack machine. A few bytes of it can ask for gigabytes (a place in the memo far away), or for
more objects than anyone could visit (lists that hold one another twice, again and again). Both show in the program itself.
"""

import pickle
import pickletools
from typing import BinaryIO

MOST_OBJECTS = 10_000_000
"""That a walk through everything in a pickle may meet, an object as often as it is referred to."""

_FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""Operations that put what they take from the stack into the object below, which stays."""


class _Object:
    """Something that a pickle makes: what it refers to, and the expected number of objects of a walk through it."""

    __slots__ = ("parts", "total")

    def __init__(self, parts: list["_Object"]) -> None:
        self.parts, self.total = parts, 0


def check(file: BinaryIO) -> None:
    """Look through the pickle that begins here, and leave the file behind it.

    Raises pickle.UnpicklingError if it is damaged, or asks for more than a network's pickle has any business with.
    """
    stacks: list[list[_Object]] = [[]]  # the last one is what lies above the last mark
    memo: dict[int, _Object] = {}
    made: list[_Object] = []
    try:
        for place, (operation, argument, _) in enumerate(pickletools.genops(file)):
            name, stack = operation.name, stacks[-1]
            if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                key = len(memo) if name == "MEMOIZE" else int(argument or 0)
                if key > place:
                    raise pickle.UnpicklingError(f"it keeps object {place} at place {key}, which takes memory for all before")
                memo[key] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name == "DUP":
                stack.append(stack[-1])
            elif name == "MARK":
                stacks.append([])
            elif name == "POP" and not stack:  # of a mark
                stacks.pop()
            elif name in _FILLED:
                parts = _taken(stacks, [kind.name for kind in operation.stack_before[1:]])
                stacks[-1][-1].parts += parts
            else:
                parts = _taken(stacks, [kind.name for kind in operation.stack_before])
                if operation.stack_after:
                    made.append(_Object(parts))
                    stacks[-1].append(made[-1])
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        raise pickle.UnpicklingError(f"it is damaged ({str(error) or type(error).__name__})") from error
    _count(made)


def _taken(stacks: list[list[_Object]], kinds: list[str]) -> list[_Object]:
    """What an operation takes from the stack: so many objects, or all above the last mark and what it names below that."""
    taken: list[_Object] = []
    if "mark" in kinds:
        taken = stacks.pop()
        kinds = kinds[: kinds.index("mark")]
    stack = stacks[-1]
    if len(stack) < len(kinds):
        raise ValueError("an operation takes what is not there")
    if kinds:
        taken = taken + stack[-len(kinds) :]
        del stack[-len(kinds) :]
    return taken


def _count(made: list[_Object]) -> None:
    """Raises pickle.UnpicklingError if a walk through the objects would take too long, or never end."""
    waiting = [(one, False) for one in made]
    while waiting:
        one, done = waiting.pop()
        if done:
            one.total = 1 + sum(part.total for part in one.parts)
            if one.total > MOST_OBJECTS:
                raise pickle.UnpicklingError("its objects hold one another so often that a walk through them would not end")
        elif one.total == 0:
            one.total = -1
            waiting.append((one, True))
            waiting += [(part, False) for part in one.parts if part.total <= 0]
        elif one.total == -1:
            raise pickle.UnpicklingError("an object in it holds itself")
