# SPDX-License-Identifier: Apache-2.0
"""push and pull are transposes of each other, and shared gradients are formed without per-element matrices."""

import pytest
import torch
from regular import close, tracked
from torch.profiler import ProfilerActivity, profile

from optlayer.derivative.variation import matvec, outer, pull, push, summed


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def largest_allocation(function):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    return max(event.self_cpu_memory_usage for event in record.events())


@pytest.mark.parametrize("lead", [(3,), (1,), ()], ids=["own", "size one", "shared"])
def test_pull_is_the_transpose_of_push(lead):
    n, p, m = 4, 2, 3
    w, u = [(normal(3, n), normal(3, p), normal(3, m)) for _ in range(2)]
    changes = normal(*lead, n, n), normal(*lead, m, n), normal(*lead, p, n)
    right = push(w, *changes)
    left = pull(w, u, [t.shape for t in changes], (True, True, True))
    pushed = sum((a * b).sum() for a, b in zip(u, right, strict=True))
    pulled = sum((a * b).sum() for a, b in zip(left, changes, strict=True))
    close(pushed, pulled)


def test_push_of_nothing_is_nothing():
    assert push((normal(2), normal(1), normal(3)), None, None, None) == (None, None, None)


def test_pull_forms_only_what_is_wanted():
    w = u = (normal(2, 4), normal(2, 1), normal(2, 3))
    shapes = [torch.Size(size) for size in ((4, 4), (3, 4), (1, 4))]
    assert [t is not None for t in pull(w, u, shapes, (False, True, False))] == [False, True, False]
    assert pull((None, None, None), u, shapes, (False, False, False)) == [None, None, None]


@pytest.mark.parametrize("lead", [(2, 3), (1, 3), (2, 1), (3,), (1,), (1, 1), ()], ids=str)
def test_outer_sums_over_exactly_the_shared_dimensions(lead):
    rows, columns = normal(2, 3, 2, 4), normal(2, 3, 2, 5)
    shape = torch.Size((*lead, 4, 5))
    close(outer(rows, columns, shape), torch.einsum("...ki,...kj->...ij", rows, columns).sum_to_size(shape))


@pytest.mark.parametrize("lead", [(2, 3), (1, 3), (3,), (1, 1), ()], ids=str)
def test_matvec_broadcasts(lead):
    M, v = normal(*lead, 4, 5), normal(2, 3, 5)
    close(matvec(M, v), torch.einsum("...ij,...j->...i", M, v))


def test_summed():
    t = normal(2, 3, 4)
    assert summed(t, t.shape, True) is t
    close(summed(t, torch.Size((1, 4)), True), t.sum((0, 1))[None])
    assert summed(t, t.shape, False) is None
    assert summed(t, None, True) is None


@pytest.mark.parametrize("lead", [(), (1,)], ids=["no batch dimension", "size one"])
def test_a_shared_gradient_is_one_product_without_expanded_intermediates(lead):
    n, batch = 64, 512
    w, u = [(normal(batch, n), normal(batch, 0), normal(batch, n)) for _ in range(2)]
    per_element = batch * n * n * 8
    assert largest_allocation(lambda: w[0].unsqueeze(-1) * u[0].unsqueeze(-2)) == per_element  # what must not happen
    shapes = [torch.Size((*lead, n, n))] * 2 + [None]
    biggest = largest_allocation(lambda: pull(w, u, shapes, (True, True, False)))
    assert biggest <= 2 * batch * n * 8 < per_element / 20  # the two stacked vectors of every element
    matrix = normal(*lead, n, n)
    assert largest_allocation(lambda: push(w, matrix, matrix, None)) <= batch * n * 8


def test_derivatives_of_shared_matrices_stay_small_at_second_order():
    n, batch = 32, 256
    M, v = tracked([normal(1, n, n), normal(batch, n)])
    (first,) = torch.autograd.grad(matvec(M, v).pow(2).sum(), v, create_graph=True)
    biggest = largest_allocation(lambda: torch.autograd.grad(first.sum(), (M, v)))
    assert biggest <= 2 * batch * n * 8
