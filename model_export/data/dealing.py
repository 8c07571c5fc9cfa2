"""Dealing groups to sides, such as folds, where groups and classes overlap."""

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, coo_array, csr_array, eye_array, kron
from scipy.sparse.csgraph import connected_components

T = TypeVar("T", bound=Hashable)

# Nodes of the search tree. Proving that nothing is closer to the wanted numbers takes minutes where dozens of groups
# are in dozens of classes, and time would be no limit that gives the same on every machine.
NODES = 10
LIMIT_REACHED = 1  # status of ``scipy.optimize.milp``


def linked(pairs: Iterable[tuple[T, Hashable]]) -> dict[T, int]:
    """Number the first members of pairs; those that share a second one, also through others, have the same number."""
    pairs = list(pairs)
    first = {one: i for i, one in enumerate(dict.fromkeys(one for one, _ in pairs))}
    second = {other: i for i, other in enumerate(dict.fromkeys(other for _, other in pairs), len(first))}
    ends = [first[one] for one, _ in pairs], [second[other] for _, other in pairs]
    size = len(first) + len(second)
    _, numbers = connected_components(coo_array((np.ones(len(pairs)), ends), shape=(size, size)), directed=False)
    return {one: int(numbers[i]) for one, i in first.items()}


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return names in an order that depends on the seed and on each name, not on the order given or on other names."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f"{seed} {name}")).digest())


def deal(
    classes: Mapping[str, Set[int]], wanted: Mapping[int, Sequence[float]], least: int, seed: int
) -> dict[str, int] | None:
    """Deal groups to sides so that no side gets all groups of a class, and each side gets a group.

    Among all such dealings, an integer program (HiGHS) finds one with the least sum of differences from the wanted
    numbers, or one close to it where ``NODES`` are not enough. The seed decides between equal ones.

    Args:
        classes: The classes of each group's clips.
        wanted: The wanted number of each class's groups on each side.
        least: The least number of each class's groups on each side.
        seed: Seed of the order of the groups.

    Returns:
        The side of each group; ``None`` if there is no such dealing.
    """
    names, labels = shuffled(classes, seed), sorted(wanted)
    target = np.array([wanted[label] for label in labels]).T.ravel()
    sides = len(target) // len(labels)
    # Variables: whether each group is on the first side, on the second, …; then each class's difference on each side.
    member = csr_array([[float(label in classes[name]) for name in names] for label in labels])
    size = np.tile(member.sum(axis=1), sides)
    number, difference = kron(eye_array(sides), member), eye_array(len(target))
    rows = [
        (kron(np.ones((1, sides)), eye_array(len(names))), None, np.ones(len(names)), np.ones(len(names))),
        (kron(eye_array(sides), np.ones((1, len(names)))), None, np.ones(sides), np.full(sides, np.inf)),
        (number, None, np.full(len(target), least), size - 1),
        (number, -difference, np.full(len(target), -np.inf), target),
        (number, difference, target, np.full(len(target), np.inf)),
    ]
    kinds = [sides * len(names), len(target)]
    solve = partial(
        milp,
        np.repeat([0, 1], kinds),
        integrality=np.repeat([1, 0], kinds),
        bounds=Bounds(0, np.repeat([1, np.inf], kinds)),
        constraints=LinearConstraint(
            block_array([row[:2] for row in rows]),
            np.concatenate([lower for *_, lower, _ in rows]),
            np.concatenate([upper for *_, upper in rows]),
        ),
    )
    found = solve(options={"node_limit": NODES})
    if found.x is None and found.status == LIMIT_REACHED:
        found = solve()
    if found.x is None:
        return None
    on = found.x[: kinds[0]].reshape(sides, len(names)).argmax(axis=0)
    return dict(zip(names, on.tolist(), strict=True))
