"""Capture: which uses of a parameter are seen, what each says, and when nothing is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from curvlab.model.capture import Capture
from curvlab.model.parameter_use import ParameterUse
from curvlab.model.rerun.modules import rerun
from tests.model.recorded import Recorded


def uses_in(run: Callable[[], Any], *parameters: Tensor) -> list[ParameterUse]:
    seen: list[ParameterUse] = []
    with Capture(parameters, seen.append):
        run()
    return seen


def randn(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(randn(*shape))


def assert_uses_make_the_gradient(run: Callable[[], Tensor], *parameters: Tensor) -> list[ParameterUse]:
    """Output gradients, asked of edges, and what was recorded make each parameter's whole gradient."""
    recorded = Recorded()
    with Capture(parameters, recorded.add):
        y = run()
    recorded.assert_gradients((y * randn(*y.shape)).sum(), parameters)
    return recorded.uses


LINEAR: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "F.linear": ("linear", lambda x, w, b: F.linear(x, w, b)),
    "by name": ("linear", lambda x, w, b: F.linear(input=x, weight=w, bias=b)),
    "matmul with T": ("linear", lambda x, w, b: torch.matmul(x, w.T) + b),
    "operator with mT": ("linear", lambda x, w, b: x @ w.mT + b),
    "mm": ("linear", lambda x, w, b: torch.mm(x.flatten(0, 1), w.t()) + b),
    "method mm": ("linear", lambda x, w, b: x.flatten(0, 1).mm(w.t()) + b),
    "addmm with T": ("linear", lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w.T)),
    "method addmm": ("linear", lambda x, w, b: b.addmm(x.flatten(0, 1), w.T)),
    "F.linear of T": ("transposed linear", lambda x, w, b: F.linear(x, w.T, b)),
    "matmul": ("transposed linear", lambda x, w, b: torch.matmul(x, w) + b),
    "operator": ("transposed linear", lambda x, w, b: x @ w + b),
    "reflected": ("transposed linear", lambda x, w, b: w.__rmatmul__(x) + b),
    "addmm": ("transposed linear", lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w)),
}


@pytest.mark.parametrize(("kind", "run"), LINEAR.values(), ids=LINEAR)
def test_linear_maps_make_the_gradient(kind: str, run: Callable[..., Tensor]) -> None:
    w, b, x = parameter(4, 4), parameter(4), randn(3, 2, 4)
    seen = assert_uses_make_the_gradient(lambda: run(x, w, b), w, b)
    assert seen[0].kind == kind
    assert seen[0].part.parameter is w
    assert (seen[0].part.start, seen[0].part.stop) == (0, 4)


@pytest.mark.parametrize(("kind", "run"), LINEAR.values(), ids=LINEAR)
def test_linear_maps_by_rows_of_a_weight_make_the_gradient(kind: str, run: Callable[..., Tensor]) -> None:
    w, b, x = parameter(9, 3), parameter(9), randn(2, 5, 3)
    seen = assert_uses_make_the_gradient(lambda: run(x, w[3:6], b[6:9]), w, b)
    assert (seen[0].part.start, seen[0].part.stop) == (3, 6)
    biases = [use.part if use.kind == "shift" else use.bias for use in seen]
    assert [(p.start, p.stop) for p in biases if p is not None] == [(6, 9)]


def test_a_bias_with_a_weight_is_one_record_and_alone_a_shift() -> None:
    w, b, x = parameter(4, 3), parameter(4), randn(2, 3)
    (both,) = uses_in(lambda: F.linear(x, w, b), w, b)
    assert both.bias is not None
    assert both.bias.parameter is b
    (alone,) = assert_uses_make_the_gradient(lambda: F.linear(x, w, b), b)
    assert alone.kind == "shift"
    (free,) = assert_uses_make_the_gradient(lambda: F.linear(x, w, 2 * b), w)
    assert free.bias is None


@pytest.mark.parametrize("x", [randn(3), randn(2, 3), randn(2, 5, 3), randn(2, 2, 5, 3)])
def test_any_leading_axes(x: Tensor) -> None:
    w, b = parameter(4, 3), parameter(4)
    assert_uses_make_the_gradient(lambda: F.linear(x, w, b), w, b)
    assert_uses_make_the_gradient(lambda: x @ w.T, w)


IN_PLACE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "transposed linear": lambda x, w, s: (x @ w).mul_(2).relu_(),
    "linear": lambda x, w, s: F.linear(x, w, s).relu_(),
    "lookup": lambda x, w, s: F.embedding(index2, w).add_(1).relu_(),
    "scale": lambda x, w, s: (x * s).relu_(),
    "shift": lambda x, w, s: (x + s).relu_(),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_gradients_arrive_although_the_output_is_changed_in_place(kind: str) -> None:
    x, w, s = randn(5, 2, 3), parameter(3, 3), parameter(3)
    captured = {"scale": (s,), "shift": (s,), "linear": (w, s)}.get(kind, (w,))
    (use,) = assert_uses_make_the_gradient(lambda: IN_PLACE[kind](x, w, s), *captured)
    assert use.kind == kind


def test_lookups_and_their_padding() -> None:
    table, index = parameter(6, 3), torch.tensor([[0, 5, 3], [5, 5, 1]])
    (use,) = assert_uses_make_the_gradient(lambda: F.embedding(index, table), table)
    assert (use.kind, use.padding) == ("lookup", None)
    assert use.x is not None
    assert torch.equal(use.x, index)
    for padding in (5, -1):
        (use,) = assert_uses_make_the_gradient(lambda p=padding: F.embedding(index, table, p), table)  # type: ignore[misc]
        assert use.padding == 5
    layer = nn.Embedding(6, 3, padding_idx=1).double()
    (use,) = assert_uses_make_the_gradient(lambda: layer(index), layer.weight)
    assert use.padding == 1
    (use,) = assert_uses_make_the_gradient(lambda: F.embedding(index - 1 * (index > 0), table[1:], 4), table)
    assert (use.part.start, use.part.stop) == (1, 6)


ELEMENTWISE: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "x * s": ("scale", lambda x, s: x * s),
    "s * x": ("scale", lambda x, s: s * x),
    "torch.mul": ("scale", lambda x, s: torch.mul(s, x)),
    "multiply": ("scale", lambda x, s: x.multiply(s)),
    "x + s": ("shift", lambda x, s: x + s),
    "s + x": ("shift", lambda x, s: s + x),
    "torch.add": ("shift", lambda x, s: torch.add(x, other=s)),
    "alpha of the other": ("shift", lambda x, s: torch.add(s, x, alpha=3)),
    "in place": ("shift", lambda x, s: (2 * x).add_(s)),
    "scale by one of two": ("scale", lambda x, s: x * s[:3] if x.shape[-1] == 3 else x * s),
}


@pytest.mark.parametrize(("kind", "run"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_scales_and_shifts_make_the_gradient(kind: str, run: Callable[..., Tensor]) -> None:
    s = parameter(4)
    for x in (randn(5, 4), randn(2, 5, 4, grad=True)):
        (use,) = assert_uses_make_the_gradient(lambda x=x: run(x, s), s)  # type: ignore[misc]
        assert use.kind == kind
        assert use.x is None or not use.x.requires_grad


def test_an_augmented_assignment_is_a_shift() -> None:
    s = parameter(4)

    def run() -> Tensor:
        x = randn(3, 4) * 2
        x += s
        return x

    (use,) = assert_uses_make_the_gradient(run, s)
    assert use.kind == "shift"


def test_two_uses_of_one_weight_are_two_records() -> None:
    w, index = parameter(6, 3), torch.tensor([1, 5])
    seen = assert_uses_make_the_gradient(lambda: F.linear(F.embedding(index, w).tanh(), w), w)
    assert [use.kind for use in seen] == ["lookup", "linear"]


x3, index2 = randn(2, 3), torch.tensor([1, 2])
UNREAD: dict[str, tuple[str, str, Callable[[Tensor, Tensor], Any]]] = {
    "another function": ("sum", "used by sum", lambda w, s: w.sum()),
    "among others in a list": ("cat", "used by cat", lambda w, s: torch.cat([x3, w])),
    "einsum": ("einsum", "used by einsum", lambda w, s: torch.einsum("ni,oi->no", x3, w)),
    "by name": ("softmax", "used by softmax", lambda w, s: torch.softmax(input=s, dim=0)),
    "normalization": ("layer_norm", "used by layer_norm", lambda w, s: F.layer_norm(x3, (3,), s)),
    "another dtype": ("to", "used by to", lambda w, s: F.linear(x3.float(), w.to(torch.float32))),
    "a copy": ("clone", "used by clone", lambda w, s: F.linear(x3, w.clone())),
    "columns": ("linear", "used by linear in a view other", lambda w, s: F.linear(x3[:, 1:], w[:, 1:])),
    "one row": ("matmul", "used by matmul in a view other", lambda w, s: x3 @ w[0]),
    "a vector": ("matmul", "used by matmul as no matrix", lambda w, s: x3 @ s),
    "on the left": ("matmul", "used by matmul as an input", lambda w, s: w @ x3.T),
    "an input": ("linear", "used by linear as an input", lambda w, s: F.linear(w, x3)),
    "alpha of a product": ("addmm", "with alpha or beta", lambda w, s: torch.addmm(s, x3, w[:3], alpha=2)),
    "a full bias": ("addmm", "as a bias of another shape", lambda w, s: torch.addmm(w[:2], x3, randn(3, 3))),
    "scaled lookup": ("embedding", "scale_grad", lambda w, s: F.embedding(index2, w, None, None, 2.0, True)),
    "lookup in columns": ("embedding", "in a view other", lambda w, s: F.embedding(index2, w[:, 1:])),
    "scale in place": ("mul_", "used by mul_", lambda w, s: (2 * x3).mul_(s)),
    "scale of a number": ("mul", "other than one entry", lambda w, s: 2 * s),
    "scale by a matrix": ("mul", "other than one entry", lambda w, s: w[:2] * x3),
    "scale without examples": ("mul", "other than one entry", lambda w, s: s * randn(3)),
    "scale of an outer shape": ("mul", "other than one entry", lambda w, s: randn(2, 1) * s),
    "scale of another axis": ("mul", "in a view other", lambda w, s: s[:, None] * x3.T),
    "a shift with alpha": ("add", "with alpha", lambda w, s: torch.add(x3, s, alpha=2)),
    "difference": ("sub", "used by sub", lambda w, s: x3 - s),
}  # fmt: skip


@pytest.mark.parametrize(("function", "reason", "run"), UNREAD.values(), ids=UNREAD)
def test_other_uses_are_unread_with_their_reason(function: str, reason: str, run: Callable[..., Any]) -> None:
    w, s = parameter(5, 3), parameter(3)
    seen = uses_in(lambda: run(w, s), w, s)
    assert seen
    assert {use.kind for use in seen} == {"unread"}
    assert {use.function for use in seen} == {function}
    assert all(reason in use.reason for use in seen), seen[0].reason
    assert all(use.output.requires_grad for use in seen)


def test_parameters_that_make_a_weight_together_are_unread() -> None:
    """What is made of parameters alone has no examples, whichever of them is captured."""
    a, b, s, x = parameter(2, 3), parameter(4, 2), parameter(3), randn(5, 3)
    for captured in ((a, b), (a,), (b,)):
        seen = uses_in(lambda: F.linear(x, b @ a), *captured)
        assert {use.kind for use in seen} == {"unread"}
        assert {id(use.part.parameter) for use in seen} == set(map(id, captured))
    (use,) = uses_in(lambda: F.linear(x, a * s), s)
    assert use.reason == "used by mul with another parameter"
    seen = uses_in(lambda: F.linear(a, a), a)
    assert [use.reason for use in seen] == [
        "used by linear as an input",
        "used by linear with another parameter",
    ]


def test_a_parametrized_weight_is_unread_where_its_parameters_are_captured() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 2)).double()
    seen = uses_in(lambda: layer(randn(4, 3)), *layer.parametrizations.parameters())
    assert {use.reason for use in seen} == {"used by _weight_norm"}
    assert len(seen) == 2


@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated")
def test_an_overload_with_other_arguments_is_unread() -> None:
    w, x = parameter(3, 3), randn(2, 3)
    (use,) = uses_in(lambda: torch.addmm(1.0, randn(3), x, w), w)  # type: ignore[call-overload]
    assert use.reason == "used by addmm"


def test_views_and_attributes_alone_are_no_use() -> None:
    w, s = parameter(6, 3), parameter(3)

    def run() -> None:
        w.shape, w.T, w.grad, w.data, w.dtype, w.mT[1:], w.chunk(3), w.view(-1), w[0], w.requires_grad_()
        w.detach() * 2, w.size(0), w.numel(), w.to(torch.float64), w.contiguous(), s.unsqueeze(0), w.unbind(0)

    assert uses_in(run, w, s) == []


def test_nothing_is_seen_of_other_tensors_or_frozen_parameters() -> None:
    w, frozen, x = parameter(4, 3), parameter(4, 3).requires_grad_(False), randn(2, 3, grad=True)
    assert uses_in(lambda: (F.linear(x, w), F.linear(x, frozen), (x * 2).sum()), frozen, parameter(2)) == []


def test_nothing_is_seen_without_gradients() -> None:
    w, x = parameter(4, 3), randn(2, 3)

    @torch.no_grad()
    def run() -> None:
        F.linear(x, w)
        parameter(4, 3).copy_(w)  # a moving average has gradients enabled for what it is written to
        with torch.enable_grad():
            F.linear(x, w)

    assert len(uses_in(run, w)) == 1
    with torch.inference_mode():
        assert uses_in(lambda: F.linear(x, w), w) == []


def test_nothing_is_seen_after_the_context_or_an_error() -> None:
    w, x, seen = parameter(4, 3), randn(2, 3), []

    def fail(use: ParameterUse) -> None:
        raise RuntimeError("boom")

    def wrong_shape() -> None:
        with Capture([w], seen.append):
            F.linear(randn(2, 5), w)

    def wrong_callback() -> None:
        with Capture([w], fail):
            F.linear(x, w)

    with pytest.raises(RuntimeError, match="shapes"):
        wrong_shape()
    with pytest.raises(RuntimeError, match="boom"):
        wrong_callback()
    F.linear(x, w)
    assert seen == []


def test_captures_nest_and_each_sees_its_own_parameters() -> None:
    w, v, x = parameter(3, 3), parameter(3, 3), randn(2, 3)
    outer: list[ParameterUse] = []
    inner: list[ParameterUse] = []
    with Capture([w, v], outer.append):
        F.linear(x, w)
        with Capture([v], inner.append):
            F.linear(F.linear(x, w), v[1:])
        F.linear(x, v)
    assert [use.part.parameter is v for use in outer] == [False, False, True, True]
    assert [(use.kind, use.part.start) for use in inner] == [("linear", 1)]


def test_the_callback_is_not_captured_itself() -> None:
    w, x, seen = parameter(3, 3), randn(2, 3), []

    def on_use(use: ParameterUse) -> None:
        seen.append(use)
        F.linear(x, w)

    with Capture([w], on_use):
        F.linear(x, w)
    assert len(seen) == 1


def test_other_threads_are_not_captured_and_capture_for_themselves() -> None:
    w, x = parameter(3, 3), randn(2, 3)
    seen: dict[str, list[ParameterUse]] = {"main": [], "captured": [], "free": []}
    ready = threading.Barrier(3, timeout=60)

    def captured() -> None:
        with Capture([w], seen["captured"].append):
            ready.wait()
            for _ in range(20):
                x @ w
            ready.wait()

    def free() -> None:
        ready.wait()
        x @ w
        ready.wait()

    threads = [threading.Thread(target=captured), threading.Thread(target=free)]
    with Capture([w], seen["main"].append):
        for thread in threads:
            thread.start()
        ready.wait()
        for _ in range(20):
            F.linear(x, w)
        ready.wait()
    for thread in threads:
        thread.join()
    assert {name: {use.kind for use in uses} for name, uses in seen.items()} == {
        "main": {"linear"},
        "captured": {"transposed linear"},
        "free": set(),
    }
    assert len(seen["main"]) == len(seen["captured"]) == 20


def test_one_capture_may_serve_several_threads() -> None:
    w, x, seen = parameter(3, 3), randn(2, 3), []
    capture = Capture([w], seen.append)

    def run() -> None:
        with capture:
            F.linear(x, w)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4


@pytest.mark.parametrize(("backend", "kinds"), [("aot_eager", []), ("eager", ["linear"])])
def test_compiled_functions_give_the_same_results_and_are_compiled_once_more_at_most(
    backend: str, kinds: list[str]
) -> None:
    """The backend ``eager`` calls torch functions when it runs, so these are uses as any other."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), randn(2, 3)
    graphs: list[Any] = []
    compile_ = torch._dynamo.lookup_backend(backend)
    torch._dynamo.reset()

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return compile_(graph, inputs)

    compiled = torch.compile(model, backend=counted, fullgraph=True)
    for _ in range(3):
        seen = uses_in(lambda: compiled(x), *model.parameters())
        assert [use.kind for use in seen] == kinds
        assert torch.equal(compiled(x), model(x))
    assert len(graphs) == 2
    torch._dynamo.reset()


def test_a_model_gives_the_same_results_under_capture() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, 0.3).double()
    x = randn(4, 3, 8)
    torch.manual_seed(1)
    plain = model(x)
    torch.manual_seed(1)
    with Capture(model.parameters(), lambda use: None):
        captured = model(x)
    assert torch.equal(plain, captured)


def test_the_linear_maps_of_attention_are_captured_while_it_is_computed_again() -> None:
    torch.manual_seed(0)
    module, x, m = nn.MultiheadAttention(4, 2).double(), randn(5, 3, 4), randn(6, 3, 4)
    seen = assert_uses_make_the_gradient(
        lambda: rerun(module, (x, m, m), {"need_weights": False})[0], *module.parameters()
    )
    assert [use.kind for use in seen] == ["linear"] * 4
    packed = [use for use in seen if use.part.parameter is module.in_proj_weight]
    assert [(use.part.start, use.part.stop) for use in packed] == [(0, 4), (4, 8), (8, 12)]
    assert [(use.bias.start, use.bias.parameter is module.in_proj_bias) for use in packed if use.bias] == [
        (0, True),
        (4, True),
        (8, True),
    ]
    assert [
        use.x is not None and torch.equal(use.x, y.transpose(0, 1))
        for use, y in zip(packed, (x, m, m), strict=True)
    ] == [True] * 3
    fused = uses_in(lambda: module(x, m, m), *module.parameters())
    assert {use.reason for use in fused} == {"used by multi_head_attention_forward"}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_linear_maps_of_a_recurrence_are_captured_while_it_is_computed_again(kind: Any) -> None:
    module, x = kind(3, 4, 2, bidirectional=True).double(), randn(5, 2, 3)
    seen = assert_uses_make_the_gradient(lambda: rerun(module, (x,), {})[0], *module.parameters())
    by_weight = {
        n: sum(use.part.parameter is p for use in seen) for n, p in module.named_parameters() if p.dim() == 2
    }
    assert by_weight == {n: 1 if "ih" in n else 5 for n in by_weight}
    assert all(use.bias is not None for use in seen)
    fused = uses_in(lambda: module(x), *module.parameters())
    assert {use.kind for use in fused} == {"unread"}
    assert len(fused) == len(list(module.parameters()))
