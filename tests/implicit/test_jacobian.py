# SPDX-License-Identifier: Apache-2.0
"""Jacobians and their products are the same by every way that they may be computed."""

import contextlib

import pytest
import torch

from optlayer.implicit import jacobian as module
from optlayer.implicit.jacobian import gradient, jacobian, pull, push, vjp

B, N, K = 3, 10, 4


def F(z, X, c):
    """Independent elements, a batched matrix product, a shared factor, and unknowns that some rows do not know of."""
    a = torch.einsum("bkn,bn->bk", X, z)
    return torch.einsum("bkn,bk->bn", X, torch.tanh(a)) + c * z.square() + z[..., :1]


@pytest.fixture
def point():
    z, X, c = torch.randn(B, N), torch.randn(B, K, N), torch.randn(N)
    return z.double(), (X.double(), c.double())


def blocks(z, tensors):
    J = torch.func.jacrev(lambda q: F(q, *tensors))(z)
    return torch.stack([J[b, :, b] for b in range(B)])


MODES = {"alone": torch.no_grad, "followed": contextlib.nullcontext}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("chunk", [1, 10 * B * K * N, 1 << 20])  # one by one, ten and ten, all at once
def test_the_jacobian_has_the_blocks_of_that_of_torch(monkeypatch, point, mode, chunk):
    z, tensors = point
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(module, "CHUNK", chunk)
    with mode():
        J = jacobian(F, z, tensors)
    assert (J - blocks(z, tensors)).abs().max() < 1e-13


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_products_are_those_of_the_jacobian(point, mode):
    z, (X, c) = point
    u, dc = torch.randn(B, N, dtype=z.dtype), torch.randn(N, dtype=z.dtype)
    J = torch.func.jacrev(lambda c: F(z, X, c))(c)
    with mode():
        none, pulled = pull(F, z, (X, c), (False, True), u)
        pushed = push(F, z, (X, c), (None, dc))
    assert none is None
    assert (pulled - torch.einsum("bnm,bn->m", J, u)).abs().max() < 1e-13
    assert (pushed - J @ dc).abs().max() < 1e-13


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_what_does_not_depend_on_its_argument_has_zeros_for_derivatives(point, mode):
    z, tensors = point
    with mode():
        assert (jacobian(lambda z, X, c: c.expand(B, N), z, tensors) == 0).all()
        assert (gradient(lambda q: tensors[0].sum(), z) == 0).all()
        _, pullback = vjp(lambda q: (q.square(), tensors[1]), z)
        assert torch.equal(pullback((torch.ones_like(z), tensors[1]))[0], 2 * z)


def test_the_gradient_is_differentiable_again_where_it_is_followed(point):
    z, (_, c) = point
    c.requires_grad_()
    slope = gradient(lambda q: (c * q**3).sum(-1), z)
    assert torch.equal(torch.autograd.grad(slope.sum(), c)[0], 3 * z.square().sum(0))
    with torch.no_grad():
        assert not gradient(lambda q: (c * q**3).sum(-1), z).requires_grad


def test_the_extent_of_a_product_counts_the_copies_that_vmap_makes(point):
    """A batched matrix is copied for each of several products at once, a shared one is not."""
    z, (X, _) = point
    with torch.no_grad():
        batched = module._extent(lambda v: torch.einsum("bkn,bn->bk", X, v), z)
        shared = module._extent(lambda v: v @ X[0].mT, z)
    assert batched == X.numel() and shared == z.numel()
