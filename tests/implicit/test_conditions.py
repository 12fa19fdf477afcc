# SPDX-License-Identifier: Apache-2.0
"""Each condition of the implicit function theorem, broken by itself, is found and named by its number."""

import pytest
import torch

from optlayer.implicit import conditions


def F(z, t):
    return z**3 + z - t


def test_a_regular_root_passes():
    z = torch.randn(5, 3, dtype=torch.float64)
    found = conditions(F, z, z**3 + z, batch_dims=1)
    assert found.hold.all()
    assert found.residual.shape == (5,) and (found.residual < 1e-14).all()
    slopes = 3 * z.square() + 1
    assert torch.allclose(found.condition, slopes.amax(-1) / slopes.amin(-1))
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


def test_sizes_of_every_kind():
    for shape in ((0, 2), (3, 0), (0, 0)):
        z = torch.ones(shape, dtype=torch.float64)
        assert conditions(F, z, 2 * z, batch_dims=1).hold.shape == shape[:1]
        assert repr(conditions(F, z, 2 * z, batch_dims=1)).startswith("Conditions(hold for")
    scalar = torch.tensor(1.0, dtype=torch.float32)
    assert conditions(F, scalar, 2 * scalar).hold
    assert not conditions(F, scalar * torch.nan, scalar).hold
