"""The reader of convolutions: its rows are the layer's Jacobian, for every option torch has."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from curvlab.errors import ConfigError
from curvlab.model.partition import partition
from curvlab.model.readers.conv import KINDS, ConvReader
from curvlab.model.taps import recording
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.reader import total
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal

READER = ConvReader()

#: by number of axes: lengths of the input's axes and of the kernel's
SPACE = {1: (7,), 2: (6, 5), 3: (5, 4, 5)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 2, 3)}
MODES = ("zeros", "reflect", "replicate", "circular")


#: torch warns of the copy that an uneven padding costs
even_same = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def layer(axes: int, **options: Any) -> nn.Module:
    """A convolution of 4 channels in and out, in float64."""
    torch.manual_seed(0)
    return KINDS[axes - 1](4, 4, KERNEL[axes], **options).double()


def alone(module: nn.Module) -> Blocks:
    """The layer as the only block of a model."""
    return partition(module, lambda _: True)


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """``[*output, d]``, dense: the layer is linear in θ, so column k is its output at unit vector k."""
    blocks = alone(module)
    columns = []
    for k in range(blocks.layout.size):
        unit = blocks.layout.zeros(like=x)
        unit.flat[k] = 1.0
        with torch.no_grad():
            columns.append(functional_call(module, blocks.slots(unit), (x,)))
    return torch.stack(columns, dim=-1)


def jacobian_of_rows(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """The same from the reader's rows: output c at position s reads row s of c's own group."""
    rows, (o, i), k = READER.inputs(module, x), READER.shape(module), READER.groups(module)
    n, s, _ = READER.grads(module, output, None).shape
    J = output.new_zeros(n, o, s, o, i)
    for c in range(o):
        J[:, c, :, c] = rows.reshape(n, s, k, i)[:, :, c // (o // k)]
    return J.view(*output.shape, o * i)


def assert_rows_are_the_jacobian(module: nn.Module, x: Tensor) -> None:
    output = module(x).detach()
    J = jacobian(module, x)
    assert_close(jacobian_of_rows(module, x, output), J, dimension=1)
    g = normal(*output.shape, seed=3)
    expected = torch.tensordot(g, J, dims=output.dim())
    gradient = total(READER.inputs(module, x), READER.grads(module, g, None))
    assert gradient.shape == READER.shape(module)
    assert_close(gradient.flatten(), expected, dimension=g.numel())


def geometries() -> Iterator[Any]:
    """Axes, stride, dilation, padding and padding mode: all that torch lets one combine."""
    for axes, stride, dilation in itertools.product((1, 2, 3), (1, 2), (1, 2)):
        uneven = tuple(range(axes)) if axes > 1 else 2
        for padding, mode in itertools.product((0, 1, uneven, "same", "valid"), MODES):
            if (padding == "same" and stride > 1) or (padding in (0, "valid") and mode != "zeros"):
                continue
            options = {"stride": stride, "dilation": dilation, "padding": padding, "padding_mode": mode}
            name = f"{axes}d-stride{stride}-dilation{dilation}-{padding}-{mode}".replace(" ", "")
            yield pytest.param(axes, options, id=name)


@even_same
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("axes", "options"), [*geometries()])
def test_rows_are_the_jacobian_whatever_the_options(axes: int, options: dict[str, Any], bias: bool) -> None:
    x = normal(2, 4, *SPACE[axes], seed=1)
    for groups in (1, 2, 4):
        assert_rows_are_the_jacobian(layer(axes, groups=groups, bias=bias, **options), x)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_example_without_a_batch_axis_is_a_batch_of_one(axes: int, groups: int) -> None:
    module, x = layer(axes, groups=groups, padding=1, padding_mode="reflect"), normal(4, *SPACE[axes], seed=1)
    assert_rows_are_the_jacobian(module, x)
    assert torch.equal(READER.inputs(module, x), READER.inputs(module, x.unsqueeze(0)))
    g = module(x)
    assert torch.equal(READER.grads(module, g, None), READER.grads(module, g.unsqueeze(0), None))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Any convolution and an input that it accepts."""
    axes = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, stride, dilation, groups = each(1, 3), each(1, 3), each(1, 2), draw(st.integers(1, 3))
    padding: Any = draw(st.sampled_from(["valid", "same", each(0, 2)]))
    if padding == "same":
        stride = (1,) * axes
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    space = [max(2 * k, 5) + draw(st.integers(0, 2)) for k in span] if axes < 3 else [max(k, 5) for k in span]
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    module = KINDS[axes - 1](
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(MODES)),
    )
    lead = draw(st.sampled_from([(), (1,), (2,)]))
    return module.double(), normal(*lead, inputs, *space, seed=draw(st.integers(0, 99)))


@even_same
@settings(max_examples=80, deadline=None)
@given(convolutions())
def test_rows_are_the_jacobian_of_any_convolution(case: tuple[nn.Module, Tensor]) -> None:
    assert_rows_are_the_jacobian(*case)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_layout_of_memory_does_not_matter(groups: int) -> None:
    module, x = layer(2, groups=groups, padding=1), normal(3, 4, 6, 5, seed=1)
    strange = x.to(memory_format=torch.channels_last)
    expanded = x[:1].expand(3, -1, -1, -1)
    assert not strange.is_contiguous()
    assert torch.equal(READER.inputs(module, strange), READER.inputs(module, x))
    assert torch.equal(READER.inputs(module, expanded), READER.inputs(module, expanded.contiguous()))
    module = module.to(memory_format=torch.channels_last)
    assert_rows_are_the_jacobian(module, strange)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_row_is_a_patch_in_the_weights_order_and_a_one(axes: int) -> None:
    """A kernel as large as its input sees it whole: one position, the input itself."""
    module = KINDS[axes - 1](2, 3, SPACE[axes]).double()
    x = normal(5, 2, *SPACE[axes], seed=1)
    expected = torch.cat([x.flatten(1), torch.ones(5, 1).double()], dim=1)
    assert torch.equal(READER.inputs(module, x)[:, 0], expected)


def test_every_group_has_a_row_of_its_own_channels_at_each_position() -> None:
    module, x = layer(1, groups=2), normal(3, 4, 7, seed=1)
    rows = READER.inputs(module, x).view(3, 5, 2, 7)
    for group in range(2):
        mine = nn.Conv1d(2, 2, 3).double()
        assert torch.equal(rows[:, :, group], READER.inputs(mine, x[:, 2 * group : 2 * group + 2]))


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_take_the_inputs_precision(groups: int) -> None:
    module, x = layer(2, groups=groups, padding=1), normal(3, 4, 6, 5, seed=1)
    exact = READER.inputs(module, x)
    single = READER.inputs(module.float(), x.float())
    assert single.dtype == torch.float32
    assert torch.equal(single, exact.float())


def test_rows_of_all_examples_and_rows_of_gradients_are_views() -> None:
    """Joining examples and positions, as every factor does, copies nothing more."""
    module, x = layer(2, padding=1), normal(3, 4, 6, 5, seed=1)
    rows, g = READER.inputs(module, x), module(x).detach()
    assert rows.flatten(0, 1).data_ptr() == rows.data_ptr()
    assert READER.grads(module, g, None).data_ptr() == g.data_ptr()


# gradients through a model


class Folded(nn.Module):
    """Convolutions followed by changes in place, one of them called on two sizes."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding="same")
        self.twice = nn.Conv2d(4, 4, 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.first(x).relu_()).mul_(2.0)
        return self.twice(x).tanh_()


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_calls_explain_gradients_through_changes_in_place(
    groups: int, memory_format: torch.memory_format, batched: bool
) -> None:
    """The truth is of a twin in plain memory: torch 2.13 on a CPU has a float64 kernel for groups in
    ``channels_last`` without a batch axis whose weight gradient is wrong.
    """
    torch.manual_seed(0)
    twin, x = Folded(groups).double(), normal(3, 1, 6, 5, seed=1)
    x = x if batched else x[0]
    model = copy.deepcopy(twin).to(memory_format=memory_format)
    strange = x.to(memory_format=memory_format) if batched else x.mT.contiguous().mT
    blocks = alone(model)
    with recording(blocks) as tape:
        loss = model(strange).square().sum()
    explained = blocks.layout.zeros(like=x)
    for call, g in zip(tape.calls, torch.autograd.grad(loss, tape.edges), strict=True):
        explained[call.block.name].add_(total(call.inputs(), call.grads(g)))
    names = [name for name, _ in twin.named_parameters()]
    truth = torch.autograd.grad(twin(x).square().sum(), list(twin.parameters()))
    slots = blocks.slots(explained)
    assert set(slots) == set(names)
    for name, gradient in zip(names, truth, strict=True):
        assert_close(slots[name], gradient, dimension=200, what=name)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_change_in_place_of_an_unbatched_output_in_any_memory_is_seen_through(transposed: bool) -> None:
    module = layer(2)
    x = normal(4, 6, 5, seed=1)
    x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1) if transposed else x
    with recording(alone(module)) as tape:
        loss = module(x).relu_().square().sum()
    (call,) = tape.calls
    g, truth = torch.autograd.grad(loss, (call.edge, module.weight))
    assert_close(total(call.inputs(), call.grads(g))[:, :-1].view(truth.shape), truth, dimension=100)


def test_outputs_that_nobody_uses_have_zero_gradients_group_by_group() -> None:
    """Of four groups only the second reaches the loss."""
    module, x = layer(1, groups=4), normal(3, 4, 7, seed=1)
    with recording(alone(module)) as tape:
        loss = module(x)[:, 1].square().sum()
    (call,) = tape.calls
    gradient = total(call.inputs(), call.grads(torch.autograd.grad(loss, call.edge)[0]))
    assert torch.equal(gradient.abs().sum(1) > 0, torch.tensor([False, True, False, False]))
    assert torch.equal(call.grads(None), torch.zeros(3, 5, 4).double())


# packing


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_block_is_the_flattened_weight_and_the_bias_as_last_column(axes: int, bias: bool) -> None:
    module = layer(axes, groups=2, bias=bias)
    parts = [module.weight.flatten(1), *([module.bias[:, None]] if bias else [])]
    assert torch.equal(alone(module).read()["model"], torch.cat(parts, dim=1))


# what cannot be read


class Shifted(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


class Plain(nn.Conv2d):
    """A convolution in all but name."""


def test_refusals_name_the_kind_of_layer() -> None:
    assert READER.refuses(nn.Conv2d(1, 1, 1)) is None
    assert READER.refuses(Plain(1, 1, 1)) is None
    assert READER.refuses(Shifted(1, 1, 1)) == "Shifted overrides Conv2d.forward"
    for kind in (nn.Linear(1, 1), nn.ConvTranspose1d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1), nn.Unfold(2)):
        assert READER.refuses(kind) == ""


@pytest.mark.parametrize("lazy", [lambda: nn.LazyConv2d(3, 3), lambda: nn.LazyLinear(3)])
def test_a_layer_without_a_shape_is_refused_until_it_has_one(lazy: Any) -> None:
    model = nn.Sequential(lazy())
    with pytest.raises(
        ConfigError, match=r'layer "0" \(Lazy.*has no shape yet\n.*call the model on one batch'
    ):
        alone(model)
    model(torch.randn(1, 2, 4, 4))
    (block,) = alone(model).members
    assert block.is_layer
