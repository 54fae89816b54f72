"""How a compiled graph is wired to its engine."""

import operator

import pytest
import torch
from torch import fx

from optim.tensorrt.engine import wiring


def _compiled(swapped: bool = False, leftover: bool = False) -> fx.Graph:
    """Build a graph as Torch-TensorRT leaves it: an engine of x and z with two results, y unused."""
    graph = fx.Graph()
    x, _, z = (graph.placeholder(name) for name in "xyz")
    engine = graph.call_module("_run_on_acc_0", (z, x))
    results = [graph.call_function(operator.getitem, (engine, i)) for i in range(2)]
    if leftover:
        results[0] = graph.call_function(torch.neg, (results[0],))
    graph.output(tuple(reversed(results)) if swapped else tuple(results))
    return graph


@pytest.mark.parametrize(("swapped", "outputs"), [(False, (0, 1)), (True, (1, 0))])
def test_engine_is_wired_by_the_graph_and_not_by_order(swapped: bool, outputs: tuple[int, int]) -> None:
    assert wiring(_compiled(swapped)) == ((2, 0), outputs, "_run_on_acc_0")


def test_operation_left_in_pytorch_is_an_error() -> None:
    with pytest.raises(
        RuntimeError, match=r"must take the module whole, got 1 subgraphs and, in PyTorch, \['neg'\]"
    ):
        wiring(_compiled(leftover=True))


def test_engine_that_is_one_result_is_wired() -> None:
    graph = fx.Graph()
    graph.output((graph.call_module("_run_on_acc_0", (graph.placeholder("x"),)),))
    assert wiring(graph) == ((0,), (0,), "_run_on_acc_0")
