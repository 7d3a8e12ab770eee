"""Which nodes had better compute in integers: a minimum cut between what runs in int8 and what stays in float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "cut"]


@dataclass(frozen=True)
class Choice:
    """One node that can run either way: its costs, and the tensors that it reads and makes.

    Costs are in any one unit, time plus weighted error.
    """

    key: int
    as_float: float
    as_int8: float
    reads: Sequence[int]
    makes: Sequence[int]


def cut(choices: Iterable[Choice], quantize: Mapping[int, float], dequantize: Mapping[int, float]) -> set[int]:
    """Return the keys of the nodes that run in int8 so that the total cost is least.

    The total is the sum of the nodes' costs, plus ``quantize[t]`` once for every tensor t made in float and read in
    int8, plus ``dequantize[t]`` once for every tensor made in int8 and read in float. What no choice makes is made in
    float; a reader that can only run in float is a choice whose ``as_int8`` is infinite. Solved exactly, as a minimum
    s–t cut with int8 on the source's side.
    """
    import networkx as nx  # slow to import, and not needed to list the passes
    from networkx.algorithms.flow import boykov_kolmogorov  # twice as fast as the default here

    network = nx.DiGraph()
    network.add_nodes_from(("int8", "float"))
    made: dict[int, int] = {}
    listed = list(choices)
    for choice in listed:
        for tensor in choice.makes:
            made[tensor] = choice.key
        if choice.as_float > 0:
            network.add_edge("int8", choice.key, capacity=choice.as_float)
        if choice.as_int8 == float("inf"):
            network.add_edge(choice.key, "float")  # no capacity: infinite
        elif choice.as_int8 > 0:
            network.add_edge(choice.key, "float", capacity=choice.as_int8)
    for choice in listed:
        for tensor in choice.reads:
            maker: int | str = made.get(tensor, "float")
            network.add_edge(choice.key, ("q", tensor))
            network.add_edge(("q", tensor), maker, capacity=quantize.get(tensor, 0.0))
            if maker != "float":
                network.add_edge(("d", tensor), choice.key)
                network.add_edge(maker, ("d", tensor), capacity=dequantize.get(tensor, 0.0))
    _, (source, _) = nx.minimum_cut(network, "int8", "float", flow_func=boykov_kolmogorov)
    return {choice.key for choice in listed if choice.key in source}
