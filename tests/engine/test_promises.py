"""What the engine says to a pass that does not keep to the contract; the plug-in's test has the commonest breaches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from small_models import MODELS, feeds

from onnxsqueeze import Clean, ContractError, Int8, LowRank, UsageError, squeeze
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine.order import refuse_order
from onnxsqueeze.errors import SqueezeError
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.statistics.measured import Statistics

WHO = f"the pass 'trial' of the module {__name__}"


def nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Trial(Pass):
    """Plans one site at the first node, and does what a test wants it to do wrong."""

    name: ClassVar[str] = "trial"
    summary: ClassVar[str] = "for a test"
    cleans_first: ClassVar[bool] = False

    look: Callable[[View], object] = field(default=nothing, init=False)
    edit: Callable[[Site, Graph], object] = field(default=nothing, init=False)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        yield Site(key_of(view.nodes[0]), "done")
        found: Any = self.look(view)
        yield from found or ()

    def apply(self, site: Site, graph: Graph) -> None:
        self.edit(site, graph)


def trial(look: Callable[[View], object] = nothing, edit: Callable[[Site, Graph], object] = nothing) -> Trial:
    made = Trial()
    object.__setattr__(made, "look", look)
    object.__setattr__(made, "edit", edit)
    return made


def refused(pass_: Pass) -> str:
    model = MODELS["conv_bn_relu"]()
    before = model.SerializeToString()
    with pytest.raises(ContractError) as error:
        squeeze(model, pass_)

    assert model.SerializeToString() == before
    text = str(error.value)
    assert text.startswith(f"{WHO} breaks the contract: ")
    return text.removeprefix(f"{WHO} breaks the contract: ")


def test_a_plan_that_changes_a_weight_is_refused() -> None:
    def look(view: View) -> None:
        weight = next(iter(view.of("Conv"))).inputs[1]
        weight.values = 2 * weight.values

    assert refused(trial(look)).startswith("plan() changes the graph at 'w")


def test_a_plan_that_reads_a_weight_through_graphsurgeon_is_not_refused() -> None:
    result = squeeze(
        MODELS["conv_bn_relu"](), trial(lambda view: next(iter(view.of("Conv"))).inputs[1].values.sum() and None)
    )

    assert len(result.report.steps[0].done) == 1


def test_a_plan_that_removes_a_node_is_refused() -> None:
    assert refused(trial(lambda view: view.graph.nodes.pop() and None)).startswith("plan() changes the graph at ")


def test_a_plan_with_a_place_that_is_not_there_is_refused() -> None:
    expected = "plan() names 'nowhere', which no node makes: use key_of(node)"

    assert refused(trial(lambda view: [Site("nowhere", "done")])) == expected


def test_a_plan_with_two_sites_for_one_place_is_refused() -> None:
    def look(view: View) -> Iterable[Site]:
        return [Site(key_of(view.nodes[0]), "done again")]

    assert refused(trial(look)).startswith("plan() yields two sites for ")


def test_a_plan_that_is_no_iterable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "plan", lambda self, view, stats: None)

    assert refused(trial()) == "plan() returns None: yield from it, or return a list"


def test_two_nodes_that_make_one_tensor_are_refused() -> None:
    def edit(site: Site, graph: Graph) -> None:
        graph.nodes[-1].outputs[0] = graph.nodes[0].outputs[0]

    assert "apply() leaves two nodes that make " in refused(trial(edit=edit))


def test_another_interface_is_refused() -> None:
    def edit(site: Site, graph: Graph) -> None:
        graph.outputs[0].name = "renamed"

    assert refused(trial(edit=edit)) == "apply() changes the outputs of the model at 'y': rewrite what is between them"


def test_what_goes_wrong_in_apply_names_the_place() -> None:
    def edit(site: Site, graph: Graph) -> None:
        raise KeyError("w")

    assert refused(trial(edit=edit)) == "apply() fails at 'c1' with KeyError: 'w' (ONNXSQUEEZE_DEBUG=1 shows where)"


class Early(Trial):
    """Has to run before anything that quantizes or factors."""

    name = "early"
    forbids = ("lowrank",)


class Late(Trial):
    """Has to run behind lowrank."""

    name = "late"
    requires = ("lowrank",)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([Int8(), LowRank(ratio=0.5)], "lowrank cannot follow int8, which leaves no float weights; "
                                       "write lowrank{ratio=0.5},int8"),
        ([Int8(), Clean(), LowRank()], "lowrank cannot follow int8, which leaves no float weights; "
                                       "write clean,lowrank,int8"),
        ([Int8(), Int8()], "int8 cannot follow int8, which leaves no float weights; write it once"),
        ([LowRank(), Early()], "early cannot follow lowrank; write early,lowrank"),
        ([Int8(), Late()], "late cannot follow int8, which leaves no float weights; write late,int8"),
        ([Late()], "late needs lowrank before it; write lowrank,late"),
        ([Late(), LowRank()], "late needs lowrank before it; write lowrank,late"),
    ],
)  # fmt: skip
def test_a_wrong_order_is_refused_with_the_right_one(passes: list[Pass], message: str) -> None:
    with pytest.raises(UsageError) as error:
        refuse_order(passes)

    assert str(error.value) == message


def test_a_right_order_is_not_refused() -> None:
    refuse_order([Clean(), Early(), LowRank(), Late(), Int8()])


@dataclass(frozen=True)
class Typed(Pass[list[str]]):
    """Rewrites nothing, and writes down what its site carries."""

    name: ClassVar[str] = "typed"
    summary: ClassVar[str] = "for a test"

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[list[str]] | Skip]:
        yield Site(key_of(view.nodes[0]), "done", work=[])

    def apply(self, site: Site[list[str]], graph: Graph) -> None:
        site.work.append(site.key)

    def tune(self, graph: Graph, done: Sequence[Site[list[str]]], bench: Bench) -> Iterator[str]:
        yield from (key for site in done for key in site.work)


def test_what_a_site_carries_reaches_apply_and_tune_but_not_the_report() -> None:
    model = MODELS["conv_bn_relu"]()

    step = squeeze(model, Typed(), feeds(model)).report.steps[-1]

    (site,) = step.done
    assert step.notes == (site.key,)
    assert site.work is None


ANY: Any = None
"""Something that is of no type in particular."""
HISTOGRAM = {"counts": [1, "x"], "low": 0.0, "high": 1.0}


@pytest.mark.parametrize("validate", ["full", "none"])
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (lambda key: Site(key, cast("Any", 3)), "whose action is 3: give a text"),
        (lambda key: Site(key, "a", ANY), "whose detail is None: give a dict"),
        (lambda key: Site(key, "a", cast("Any", {1: 2})), "whose detail is {1: 2}: give a dict"),
        (lambda key: Site(key, "a", error=cast("Any", "x")), "whose error is 'x': give a number"),
        (lambda key: Site(key, "a", {"curve": {"x": [1, 2], "y": []}}), "whose curve is none: give x and y"),
        (lambda key: Site(key, "a", {"histogram": HISTOGRAM}), "whose histogram is none: give counts"),
        (lambda key: Skip(key, ANY), "whose reason is None: give a text"),
        (lambda key: Skip(cast("Any", []), "reason"), "plan() yields the key []: use key_of(node)"),
    ],
)
def test_fields_of_wrong_types_are_refused(entry: Callable[[str], Any], words: str, validate: str) -> None:
    def look(view: View) -> Iterable[Site | Skip]:
        return [entry(key_of(view.nodes[1]))]

    with pytest.raises(ContractError, match=re.escape(words)):
        squeeze(MODELS["conv_bn_relu"](), trial(look), validate=validate)


@pytest.mark.parametrize("method", ["tune", "notes"])
def test_what_is_said_for_the_report_is_text(method: str) -> None:
    class_ = type("Talker", (Trial,), {method: lambda *_: [1]})
    with pytest.raises(ContractError, match=rf"{method}\(\) yields 1: yield texts"):
        squeeze(MODELS["conv_bn_relu"](), class_(), feeds(MODELS["conv_bn_relu"]()))


@pytest.mark.parametrize(
    "change", [{"op": None}, {"name": "a\udcff"}, {"attrs": {"x": 2**70}}], ids=["operator", "name", "attribute"]
)
def test_what_no_file_can_hold_is_refused_without_a_check_too(change: dict[str, Any]) -> None:
    def edit(site: Site, graph: Graph) -> None:
        node = next(node for node in graph.nodes if key_of(node) == site.key)
        for name, value in change.items():
            setattr(node, name, value)

    with pytest.raises(ContractError, match=r"apply\(\) leaves what no model file can hold"):
        squeeze(MODELS["conv_bn_relu"](), trial(edit=edit), validate="none")


def test_what_a_class_says_of_itself_is_checked() -> None:
    class_ = type("Odd", (Trial,), {"requires": "clean"})
    with pytest.raises(ContractError, match="requires is 'clean': a tuple of names"):
        squeeze(MODELS["conv_bn_relu"](), class_())


def test_a_file_that_a_pass_cannot_read_is_a_sentence() -> None:
    with pytest.raises(SqueezeError, match="the pass 'trial' cannot go on: /none: No such file"):
        squeeze(MODELS["conv_bn_relu"](), trial(lambda view: Path("/none").read_text()))
