"""The search on worlds that are made up, in which everything is known: what it finds, in how many tries."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxsqueeze.report.search import Figures, Search
from onnxsqueeze.search import hunt as module
from onnxsqueeze.search.hunt import Hunt
from onnxsqueeze.search.next import best, frontier
from onnxsqueeze.search.space import NUMBERS, RATIOS, STRUCTURES, Candidate, candidates, hopeless
from onnxsqueeze.search.store import Kept
from onnxsqueeze.search.wishes import Wish, wish


def few(data: bool, packed: bool) -> list[Candidate]:
    """Return every other ratio, for tests to be fast."""
    return [each for each in candidates(data, packed) if not each.structure or each.ratio in RATIOS[::2]]


class World:
    """A model of which all is known: forms of structure and of numbers that cost and lose what a seed says."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.pool = {each.pipeline: each for each in few(True, False)}
        self.packed = False
        self.choosing, self.confirming = range(4), range(4)
        self.tried: list[str] = []
        self.waiting: list[tuple[str, ...]] = []
        self.begun = False
        self.level = {name: math.exp(rng.normal(0, 1)) for name in STRUCTURES}
        self.steep = {name: rng.uniform(1.5, 3) for name in STRUCTURES}
        self.power = {name: rng.uniform(0.5, 1.0, 2) for name in STRUCTURES}
        self.numbers = {
            name: Figures(
                min(1.0, each.size * math.exp(rng.normal(0, 0.2))),
                min(1.0, each.latency * math.exp(rng.normal(0, 0.3))),
                error := each.error * math.exp(rng.normal(0, 1.5)),
                error,
            )
            for name, each in NUMBERS.items()
        }
        self.pair = {(s, n): rng.normal(0, 0.1, 3) for s in STRUCTURES for n in NUMBERS}

    def figures(self, each: Candidate) -> Figures:
        form = self.numbers[each.numbers]
        if not each.structure:
            return form
        error = 2e-3 * self.level[each.structure] * ((1 / each.ratio - 1) * 1.5) ** self.steep[each.structure]
        size, latency = each.ratio ** self.power[each.structure]
        off = np.exp(self.pair[each.structure, each.numbers]) if each.numbers != "float" else np.ones(3)
        error = (error + form.error) * off[2]
        return Figures(size * form.size * off[0], latency * form.latency * off[1], error, error)

    def begin(self, *pipelines: str) -> None:
        self.waiting.append(pipelines)

    def finish(self) -> list[Kept]:
        pipelines = self.waiting.pop(0)
        self.tried.extend(pipelines)
        found = [self.figures(self.pool[each]) for each in pipelines]
        return [Kept(each, confirmed=each.drop, seconds=1.0) for each in found]

    def drop(self, position: int) -> None:
        del self.waiting[position]

    def known(self) -> dict[str, Kept]:
        return {}

    def recipe(self, pipeline: str) -> Any:
        return SimpleNamespace(to_toml=lambda: f"# {pipeline}")

    @property
    def store(self) -> Any:
        return SimpleNamespace(forget=lambda pipeline: None)


def hunted(world: World, wanted: Wish, monkeypatch: pytest.MonkeyPatch, seconds: float = 300.0) -> Hunt:
    """Search a world without a clock: every try takes no time."""
    monkeypatch.setattr(module, "candidates", few)
    monkeypatch.setattr(module, "_graph", lambda opened: 0.0)
    monkeypatch.setattr(module, "advice", lambda *_: ())
    monkeypatch.setattr("onnxsqueeze.search.hunt.time.perf_counter", lambda: 0.0)
    opened: Any = SimpleNamespace(data=object(), run=SimpleNamespace(score=None, calib=range(8)))
    found = Hunt(world, opened, [(wanted, 1.0)], seconds, 0.0)  # type: ignore[arg-type]
    found.go(lambda stage, done, total: None)
    return found


@pytest.mark.parametrize("text", ["auto", "auto{latency=0.25}", "auto{size=0.125}"])
def test_what_is_found_in_few_tries_is_about_the_best_of_all(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits are kept, and what is found is within 2 dB or 10 % of the best of all the pipelines that there are."""
    wanted = wish(text, 1, False, None, None)
    for seed in range(2):
        world = World(seed)
        hunt = hunted(world, wanted, monkeypatch)
        found = hunt.tries[hunt.ranked(wanted)[0]].measured
        assert found is not None
        every = {each: world.figures(each) for each in world.pool.values()}
        first = best(wanted.stricter(module.MARGIN), every)
        assert first is not None

        assert wanted.excess(found) == 0
        allowed = 10**0.2 if wanted.best == "error" else 1.1
        assert wanted.value(found) <= max(wanted.value(every[first]), 1e-6) * allowed, (seed, first)
        assert len(set(world.tried)) == len(world.tried) <= 60 < len(world.pool) / 10


def test_predictions_rank_tries_as_they_turn_out_and_the_frontier_has_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    hunt = hunted(World(0), wish("auto{latency=0.4}", 1, False, None, None), monkeypatch)
    wanted = hunt.wishes[0][0]
    told: Search = hunt.told(hunt.ranked(wanted)[0], wanted, "auto{latency=0.4}", 1.0)

    assert min(rank for rank in told.correlation.values() if rank is not None) > 0.8
    assert len(told.frontier) >= 4
    assert all(told.tries[number].recipe for number in told.frontier)


def test_the_frontier_loses_less_the_more_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    hunt = hunted(World(3), wish("auto{latency=0.4}", 1, False, None, None), monkeypatch)
    points = [hunt.predictor.known[each] for each in frontier(hunt.predictor.known, "latency")]

    assert len(points) >= 5
    assert [each.latency for each in points] == sorted(each.latency for each in points)
    assert [each.error for each in points] == sorted((each.error for each in points), reverse=True)


def test_more_effort_tries_more(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for seconds in (60.0, 1200.0):
        world = World(5)
        hunted(world, wish("auto{latency=0.3}", 1, False, None, None), monkeypatch, seconds)
        counts.append(len(world.tried))

    assert counts[0] < counts[1]


def test_an_interruption_ends_a_search_that_has_something(monkeypatch: pytest.MonkeyPatch) -> None:
    world, finish = World(1), World.finish

    def interrupted(self: World) -> list[Kept]:
        if len(self.tried) == 3:
            raise KeyboardInterrupt
        return finish(self)

    monkeypatch.setattr(World, "finish", interrupted)
    hunt = hunted(world, wish("auto", 1, False, None, None), monkeypatch)

    assert hunt.stopped == "it was interrupted"
    assert len(hunt.tries) == 3
    world.tried = ["", "", ""]
    with pytest.raises(KeyboardInterrupt):
        hunted(world, wish("auto", 1, False, None, None), monkeypatch)


def test_what_came_to_nothing_takes_with_it_what_is_as_hopeless() -> None:
    pool = candidates(True, False)
    idle = [
        e for e in pool if hopeless(e, Candidate("lowrank", 0.5, "float"), "lowrank{ratio=0.5} finds nothing to do")
    ]
    wrecked = [
        e for e in pool
        if hopeless(e, Candidate("prune", 0.2, "int8"), "prune{ratio=0.2} was rolled back: the answers collapse")
    ]  # fmt: skip

    assert {each.structure for each in idle} == {"lowrank", "lowrank by params", "prune, lowrank"}
    assert {(each.structure, each.numbers) for each in wrecked} == {("prune", "int8")}
    assert max(each.ratio for each in wrecked) <= 0.2
    assert not [e for e in pool if hopeless(e, Candidate("", 1.0, "3 bits"), "bits{weights=3} finds nothing to do")
                and e.structure]  # fmt: skip
