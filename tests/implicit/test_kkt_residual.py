# SPDX-License-Identifier: Apache-2.0
"""The KKT residual of a user's program vanishes at the optimum and nowhere else, and its derivative is solve_qp's."""

import pytest
import torch

from optlayer import ProblemError, solve_qp
from optlayer.implicit import conditions, implicit, kkt, root


def program(P, G, A):
    """1/2 x'Px + q'x subject to Gx <= h, Ax = b, as functions of (q, h, b)."""
    return kkt(
        lambda x, q, h, b: ((x @ P) * x).sum(-1) / 2 + (q * x).sum(-1),
        lambda x, q, h, b: x @ A.mT - b,
        lambda x, q, h, b: x @ G.mT - h,
        n=P.shape[-1],
        p=A.shape[0],
    )


def data(batch=4, n=5, m=6, p=2):
    M = torch.randn(n, n, dtype=torch.float64)
    G, A = (torch.randn(k, n, dtype=torch.float64) for k in (m, p))
    x = torch.randn(batch, n, dtype=torch.float64)
    q, h, b = torch.randn(batch, n, dtype=torch.float64), x @ G.mT + torch.rand(batch, m, dtype=torch.float64), x @ A.mT
    return M @ M.mT + torch.eye(n, dtype=torch.float64), G, A, [t.requires_grad_() for t in (q, h, b)]


def test_a_solution_of_solve_qp_is_a_root_with_the_same_derivative():
    P, G, A, (q, h, b) = data()
    F = program(P, G, A)
    solution = solve_qp(P, q, G=G, h=h, A=A, b=b)
    w = F.pack(solution.x, solution.y, solution.z).detach()
    assert conditions(F, w, q, h, b, batch_dims=1).hold.all()
    attached = implicit(F, w, q, h, b, batch_dims=1)
    g = torch.randn_like(w)
    ours = torch.autograd.grad(attached, (q, h, b), g)
    theirs = torch.autograd.grad(F.pack(solution.x, solution.y, solution.z), (q, h, b), g)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(F.split(w), (solution.x, solution.y, solution.z), strict=True))


def test_newton_finds_the_optimum_from_the_residual():
    P, G, A, (q, h, b) = data()
    F = program(P, G, A)
    start = torch.zeros(4, 13, dtype=torch.float64)
    solution = root(F, start, q, h, b, batch_dims=1)
    expected = solve_qp(P, q, G=G, h=h, A=A, b=b)
    assert solution.converged.any()
    gap = (F.split(solution.value)[0] - expected.x).abs().amax(-1)
    assert (gap[solution.converged] < 1e-7).all()


def test_an_infeasible_point_and_a_negative_multiplier_are_no_roots():
    """The product z g would vanish at both."""
    F = kkt(lambda x: x.square().sum(-1), None, lambda x: 1 - x, n=1)  # min x^2 subject to x >= 1
    assert F(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist() == [0.0, 0.0]
    assert F(torch.tensor([0.0, 0.0], dtype=torch.float64))[1] == -1.0
    F = kkt(lambda x: (x - 3).square().sum(-1), None, lambda x: 1 - x, n=1)
    assert F(torch.tensor([1.0, -4.0], dtype=torch.float64)).tolist() == [0.0, -4.0]


def test_softmax_from_its_own_conditions():
    """max theta'x + H(x), sum x = 1: the Jacobian diag(x) - xx', and -x' for the multiplier."""
    F = kkt(lambda x, t: (x * x.log() - t * x).sum(-1), lambda x, t: x.sum(-1, keepdim=True) - 1, n=4, p=1)
    theta = torch.randn(4, dtype=torch.float64)
    x = torch.softmax(theta, -1)
    y = torch.logsumexp(theta, -1, keepdim=True) - 1
    J = torch.func.jacrev(lambda t: implicit(F, F.pack(x, y), t))(theta)
    assert torch.allclose(J[:4], torch.diag(x) - torch.outer(x, x), atol=1e-14)
    assert torch.allclose(J[4], x, atol=1e-14)  # y has the opposite sign of the u in that derivation


def test_parameters_of_an_objective_that_is_a_module_learn():
    class Distance(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.target = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

        def forward(self, x):
            return (x - self.target).square().sum(-1) / 2

    objective = Distance()
    F = kkt(objective, None, lambda x: x.sum(-1, keepdim=True) - 1, n=2)
    x = F.split(root(F, torch.ones(3, dtype=torch.float64)).value)[0]
    x[0].backward()
    assert objective.target.grad.tolist() == pytest.approx([0.5, -0.5], abs=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kkt(torch.sum, n=-1), "n is -1, expected a count"),
        (lambda: kkt(torch.sum, n=1, p=1), "p is 1 and eq is not given"),
        (lambda: kkt(torch.sum, torch.sum, n=1), "p is 0 and eq is given"),
        (lambda: kkt(lambda x: x.sum(-1), n=2)(torch.ones(3)), "w has 3 entries, expected n"),
        (lambda: kkt(lambda x: x.sum(-1), n=2).split(torch.ones(1)), "w has 1 entries, expected n"),
        (lambda: kkt(lambda x: x.sum(-1), None, lambda x: x, n=2)(torch.ones(3)), r"ineq returns shape \(2,\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ProblemError, match=message):
        call()
