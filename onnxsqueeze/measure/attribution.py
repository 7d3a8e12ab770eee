"""What many small rewrites each do to the answers, found with few runs: the groups that do most are taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf

from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.measure.switchboard import Switchboard, worst_error

__all__ = ["effects"]

Progress = Callable[[str, int, int], None]

NOTHING = 0.01
"""A group with a smaller share of the error is not taken apart."""


def effects(
    board: Switchboard,
    names: Sequence[str],
    own: Mapping[str, float],
    runs: int,
    progress: Progress,
    error: Callable[[Answers, Answers], float] = worst_error,
) -> dict[str, float]:
    """Return, by name, the relative squared error of the answers that each variant makes, in about ``runs`` runs.

    ``names`` are those of the variants in order, neighbours in the graph side by side. Errors add up, more or less:
    the variants are switched on in groups, and the group with the largest error is halved again and again. Within a
    group that is left, the error is shared out in proportion to the variants' ``own`` errors. In the end all are
    scaled to what all variants do together.
    """

    done = 0

    def measured(group: range) -> tuple[float, int, range]:
        nonlocal done
        done += 1
        progress("measuring layers", min(done, runs), runs)
        return -error(board.expected, board.answers(group)), group.start, group

    together = -measured(range(len(names)))[0]
    count = min(max(runs // 3, 1), len(names))
    limits = [len(names) * i // count for i in range(count + 1)]
    groups = [measured(range(a, b)) for a, b in pairwise(limits)]
    heapify(groups)
    whole: list[tuple[float, int, range]] = []
    while groups and done + 1 < runs:
        entry = heappop(groups)
        found, _, group = entry
        if len(group) == 1 or -found < NOTHING * together:
            whole.append(entry)
            continue
        middle = (group.start + group.stop) // 2
        for half in (range(group.start, middle), range(middle, group.stop)):
            heappush(groups, measured(half))
    shared: dict[str, float] = {}
    for found, _, group in (*whole, *groups):
        parts = [max(own[names[i]], 1e-12) for i in group]
        shared |= {names[i]: -found * part / sum(parts) for i, part in zip(group, parts, strict=True)}
    total = sum(shared.values())
    scale = together / total if 0 < total < inf and together < inf else 1.0
    return {name: each * scale for name, each in shared.items()}
