"""What many small rewrites each do to the answers, found with few runs: the groups that do most are taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf

from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.measure.lending import Lent
from onnxsqueeze.measure.switchboard import worst_error
from onnxsqueeze.measure.switches import Switchboard
from onnxsqueeze.workers import Workers

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
    workers: Workers | None = None,
) -> dict[str, float]:
    """Return, by name, the relative squared error of the answers that each variant makes, in about ``runs`` runs.

    ``names`` are those of the variants in order, neighbours in the graph side by side. Errors add up, more or less:
    the variants are switched on in groups, and the group with the largest error is halved again and again. Within a
    group that is left, the error is shared out in proportion to the variants' ``own`` errors. In the end all are
    scaled to what all variants do together. ``workers`` make runs that do not hang on each other at once.
    """

    lent = None if workers is None or not workers.away else Lent(board.opened, error, workers)
    done = 0

    def measured(groups: Sequence[range]) -> list[tuple[float, int, range]]:
        nonlocal done
        here = (error(board.expected, board.answers(group)) for group in groups)
        found: list[tuple[float, int, range]] = []
        for each, group in zip(here if lent is None else lent.scores(groups), groups, strict=True):
            found.append((-each, group.start, group))
            done += 1
            progress("measuring layers", min(done, runs), runs)
        return found

    together = -measured([range(len(names))])[0][0]
    count = min(max(runs // 3, 1), len(names))
    limits = [len(names) * i // count for i in range(count + 1)]
    groups = measured([range(a, b) for a, b in pairwise(limits)])
    heapify(groups)
    whole: list[tuple[float, int, range]] = []
    while groups and done + 1 < runs:
        entry = heappop(groups)
        found, _, group = entry
        if len(group) == 1 or -found < NOTHING * together:
            whole.append(entry)
            continue
        middle = (group.start + group.stop) // 2
        for half in measured([range(group.start, middle), range(middle, group.stop)]):
            heappush(groups, half)
    if lent is not None:
        lent.free()
    shared: dict[str, float] = {}
    for found, _, group in (*whole, *groups):
        parts = [max(own[names[i]], 1e-12) for i in group]
        shared |= {names[i]: -found * part / sum(parts) for i, part in zip(group, parts, strict=True)}
    total = sum(shared.values())
    scale = together / total if 0 < total < inf and together < inf else 1.0
    return {name: each * scale for name, each in shared.items()}
