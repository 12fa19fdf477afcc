# SPDX-License-Identifier: Apache-2.0
"""Each condition of the implicit function theorem, broken by itself, is found and named by its number."""

import pytest
import torch

from optlayer.implicit import conditions

SMOOTHNESS = {torch.float64: 1e-3, torch.float32: 5e-2}  # what `hold` asks for


def F(z, t):
    return z**3 + z - t


def test_a_regular_root_passes():
    z = torch.randn(5, 3, dtype=torch.float64)
    found = conditions(F, z, z**3 + z, batch_dims=1)
    assert found.hold.all()
    assert found.residual.shape == (5,) and (found.residual < 1e-14).all()
    assert torch.allclose(found.condition, torch.ones(5, dtype=torch.float64))  # a diagonal, whatever its entries
    assert repr(found).startswith("Conditions(hold for 5 of 5 elements; worst: residual")


def test_the_distance_estimates_the_error_of_the_point():
    z = torch.tensor([2.0, 2.0 + 1e-4], dtype=torch.float64)
    found = conditions(F, z, torch.full_like(z, 10.0), batch_dims=1)
    assert found.hold.tolist() == [True, False]
    assert found.distance[1].item() == pytest.approx(1e-4 / 2, rel=1e-3)


@pytest.mark.parametrize("kink", [torch.relu, torch.abs])
def test_a_kink_is_found_in_z_and_in_theta(kink):
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    found = conditions(lambda z, t: z + kink(z) - t, z, z + kink(z), batch_dims=1)
    assert found.hold.tolist() == [False, True] and found.smoothness[0] > 0.1 and found.smoothness[1] < 1e-4
    found = conditions(lambda z, t: z - kink(t), kink(z), z, batch_dims=1)
    assert found.hold.tolist() == [False, True]


KINKS = {
    "|z|": (lambda z, t: z + 2 * z.abs() - t, 0.0, 1.0),
    "relu": (lambda z, t: z + torch.relu(z) - t, 0.0, 1.0),
    "relu of a difference": (lambda z, t: z + torch.relu(z - 3e5) - t, 3e5, 3.1e5),
    "max": (lambda z, t: z + torch.maximum(z, 1 - z) - t, 0.5, 1.0),
    "a kink on a steep curve": (lambda z, t: z.exp() + torch.relu(z) + 1e2 * z.square() - t, 0.0, 1.0),
    "a difference of kinks": (lambda z, t: z + z.abs() - z.roll(1, -1).abs() / 2 - t, 0.0, 1.0),
    "sign": (lambda z, t: z + z.sign() - t, 0.0, 1.0),
    "round": (lambda z, t: 3 * z + z.round() - t, 2.5, 2.4),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 5, 40])  # above 32 entries are not moved one by one
@pytest.mark.parametrize(("kinked", "at", "beside"), KINKS.values(), ids=KINKS.keys())
def test_every_kink_and_jump_is_found_with_its_component(kinked, at, beside, n, dtype):
    z = torch.full((2, n), beside, dtype=dtype)
    z[0, n - 1] = at
    found = conditions(kinked, z, kinked(z, 0.0), batch_dims=1)
    assert found.smoothness[0] > 0.2 and found.smoothness[1] < SMOOTHNESS[dtype]
    assert found.component[0] == n - 1 or (kinked is KINKS["a difference of kinks"][0] and found.component[0] == 0)


SMOOTH = {
    "log": lambda z, t: z.abs().log() - t,
    "sqrt": lambda z, t: z.abs().sqrt() - t,
    "power": lambda z, t: z.abs() ** 3.5 + z - t,
    "cubic": lambda z, t: z**3 + z - t,
    "tanh": lambda z, t: z + z.tanh() - t,
    "exponential": lambda z, t: z.exp() - t,
    "softplus": lambda z, t: torch.nn.functional.softplus(z) - t,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("smooth", SMOOTH.values(), ids=SMOOTH.keys())
def test_smooth_functions_are_smooth_in_any_units(smooth, unit, dtype):
    """z in units of its own, F in others for each component; random points, a tiny one, and 0 where F is smooth."""
    z = torch.randn(4, 5, dtype=torch.float64)
    z[0, 0], z[1, 1] = 1e-6, 1e-9 if smooth in (SMOOTH["log"], SMOOTH["sqrt"]) else 0.0
    scale = 10.0 ** torch.linspace(-8, 8, 5, dtype=torch.float64)
    z, scale = z.to(dtype), scale.to(dtype)
    t = smooth(z, 0.0)
    found = conditions(lambda z, t: scale * smooth(z / unit, t), z * unit, t, batch_dims=1)
    assert (found.smoothness < (1e-5 if dtype is torch.float64 else 5e-2)).all()  # a hundredth of what `hold` asks for
    assert (found.condition < 10).all() and found.hold.all()


@pytest.mark.parametrize("z", [1.0, 1e-2, 1e-8, 1e-25])
def test_the_edge_of_a_domain_is_no_kink(z):
    z = torch.tensor([z, 1.0], dtype=torch.float64)
    assert conditions(lambda z, t: z.log() - t, z, z.log()).hold


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-8, 1e-10])
def test_the_edge_of_a_domain_near_an_ordinary_number_is_no_kink(distance):
    """The accuracy of the slope is that of z - 1: eps / distance, times what the step costs, in all less than 1e-3."""
    z = torch.tensor([1 + distance, 2.0], dtype=torch.float64)
    assert conditions(lambda z, t: (z - 1).log() - t, z, (z - 1).log()).hold


def test_an_edge_at_the_point_itself_is_found():
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    found = conditions(lambda z, t: z + torch.where(z < 0, torch.nan, z) - t, z, 2 * z, batch_dims=1)
    assert found.smoothness[0] == torch.inf and found.hold.tolist() == [False, True]
    found = conditions(lambda z, t: z.sqrt() - t, z, z, batch_dims=1)
    assert found.smoothness[0] == torch.inf and found.hold.tolist() == [False, True]


def test_curvature_alone_is_no_kink():
    """Functions whose first derivative vanishes at the point, or whose second does not exist there."""
    z = torch.zeros(1, dtype=torch.float64)
    for curved in (lambda z: z.square(), lambda z: z**3, lambda z: z + z * z.abs(), lambda z: z + z.abs() ** 1.5):
        assert conditions(lambda z, t, f=curved: f(z) - t, z, z).smoothness < 1e-5


def test_a_wrong_derivative_is_found():
    class Wrong(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z):
            return z**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] ** 2 * g

    z = torch.ones(1, dtype=torch.float64)
    assert not conditions(lambda z, t: Wrong.apply(z) - t, z, z).hold


def test_a_singular_jacobian_is_found():
    z = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = conditions(lambda z, t: z.square() - t, z, z.square(), batch_dims=1)
    assert found.hold.tolist() == [False, True]
    assert found.condition.tolist() == pytest.approx([torch.inf, 1.0])


def test_elements_that_depend_on_each_other_are_found():
    z = torch.ones(3, 2, dtype=torch.float64)
    coupled = lambda z, t: z - t + z.mean(0)  # noqa: E731
    found = conditions(coupled, z, 2 * z, batch_dims=1)
    assert not found.hold.any() and (found.coupling > 0.1).all()
    assert conditions(coupled, z, 2 * z).hold


def test_arguments_of_every_kind():
    """Integers, booleans, None and modules; two batch dimensions, not contiguous."""
    z = torch.ones(2, 3, 4, dtype=torch.float64).transpose(0, 1)
    mask = torch.tensor([True, False, True, False])
    G = lambda z, k, mask, none: z**k - torch.where(mask, 1.0, z)  # noqa: E731
    assert conditions(G, z, torch.tensor(3), mask, None, batch_dims=2).hold.shape == (3, 2)
    cell = torch.nn.Linear(4, 4, dtype=torch.float64)
    found = conditions(cell, torch.linalg.solve(cell.weight, -cell.bias).detach())
    assert found.hold and found.smoothness < 1e-8


def test_sizes_of_every_kind():
    for shape in ((0, 2), (3, 0), (0, 0)):
        z = torch.ones(shape, dtype=torch.float64)
        assert conditions(F, z, 2 * z, batch_dims=1).hold.shape == shape[:1]
        assert repr(conditions(F, z, 2 * z, batch_dims=1)).startswith("Conditions(hold for")
    assert conditions(F, z, 2 * z, batch_dims=1).component.numel() == 0
    empty = torch.ones(3, 0, dtype=torch.float64)
    assert conditions(F, empty, empty, batch_dims=1).component.tolist() == [-1] * 3
    scalar = torch.tensor(1.0, dtype=torch.float32)
    assert conditions(F, scalar, 2 * scalar).hold
    assert not conditions(F, scalar * torch.nan, scalar).hold
