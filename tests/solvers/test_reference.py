# SPDX-License-Identifier: Apache-2.0
"""The reference engine as a whole: formulations agree, the kept system is the one at the solution."""

import torch

from optlayer.kkt.algebra import take
from optlayer.kkt.program import Program
from optlayer.kkt.system import State, System
from optlayer.solvers import reference
from optlayer.solvers.newton import Rules
from optlayer.status import Status

f64 = torch.float64
RULES = Rules(eps_abs=1e-9, eps_rel=1e-9, max_iter=200)


def random_program(B: int = 8, n: int = 6, p: int = 2, m: int = 5, condition: float = 1.0) -> Program:
    Q, _ = torch.linalg.qr(torch.randn(B, n, n, dtype=f64))
    P = (Q * torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=f64)) @ Q.mT
    x, C = torch.randn(B, n, dtype=f64), torch.randn(B, p + m, n, dtype=f64)
    slack = torch.rand(B, p + m, dtype=f64)
    slack[:, :p] = 0
    free = torch.full((B, n), torch.inf, dtype=f64)
    return Program(
        (P + P.mT) / 2, torch.randn(B, n, dtype=f64), C, (C @ x.unsqueeze(-1)).squeeze(-1) + slack, -free, free
    )


def test_both_formulations_find_the_same_solution_in_the_same_iterations() -> None:
    data = random_program()
    split, ranged = (reference.solve(data, 2, RULES, name) for name in ("split", "range"))
    assert (split.status == Status.SOLVED).all()
    assert (ranged.status == Status.SOLVED).all()
    assert (split.iterations - ranged.iterations).abs().max() <= 1
    torch.testing.assert_close(split.x, ranged.x, rtol=1e-10, atol=1e-10)  # both are polished on the same face
    torch.testing.assert_close(split.v, ranged.v, rtol=1e-9, atol=1e-9)


def test_mixed_batches_are_solved_each_in_its_formulation() -> None:
    """Well conditioned and singular P side by side, in any order, as alone."""
    good, bad = random_program(B=4), random_program(B=4, condition=1e12)
    mixed = Program(*(torch.stack([a, b], 1).flatten(0, 1) for a, b in zip(good, bad, strict=True)))
    whole = reference.solve(mixed, 2, RULES, "auto")
    for part, offset in ((good, 0), (bad, 1)):
        alone = reference.solve(part, 2, RULES, "auto")
        assert torch.equal(alone.status, whole.status[offset::2])
        assert torch.equal(alone.iterations, whole.iterations[offset::2])
        torch.testing.assert_close(alone.x, whole.x[offset::2], rtol=1e-9, atol=1e-9)


def test_the_kept_system_is_that_of_the_solution() -> None:
    """K (x, v, z_box) = (-q, d, bounds) on the active set: the solution solves its own system."""
    data = random_program()
    out = reference.solve(data, 2, RULES, "auto")
    state = State.unpack(out.state, 6, 7)
    active = out.v != 0
    assert torch.equal(active, state.w == torch.inf)
    system = System(data.P, data.C, state, out.heavy, out.factors)
    x, v, _ = system.solve(-data.q.unsqueeze(-1), data.d.unsqueeze(-1), torch.zeros_like(data.q).unsqueeze(-1))
    torch.testing.assert_close(x.squeeze(-1), out.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(v.squeeze(-1), out.v, rtol=1e-9, atol=1e-9)


def test_failed_elements_have_no_system_and_a_verdict_each() -> None:
    data = random_program(B=5)
    P, q, C, d, lb, ub = (t.clone() for t in data)
    P[1] = -P[1]
    q[2, 0] = torch.nan
    C[3, 3], C[3, 4], d[3, 3], d[3, 4] = C[3, 2], -C[3, 2], 0.0, -1.0
    P[4], q[4], d[4, 2:], C[4, :2] = 0, 1, torch.inf, 0
    d[4, :2] = 0
    out = reference.solve(Program(P, q, C, d, lb, ub), 2, RULES, "auto")
    expected = [Status.SOLVED, Status.NON_CONVEX, Status.INVALID_DATA, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE]
    assert out.status.tolist() == [int(s) for s in expected]
    assert State.unpack(out.state, 6, 7).ok.flatten().tolist() == [True, False, False, False, False]
    alone = reference.solve(take(data, torch.tensor([0])), 2, RULES, "auto")
    assert torch.equal(alone.x[0], out.x[0])
    v, d3 = out.ray_v[3], d[3]
    torch.testing.assert_close(d3 @ v, torch.tensor(-1.0, dtype=f64))
    assert (C[3].mT @ v).abs().max() < 1e-8
    torch.testing.assert_close(q[4] @ out.ray_x[4], torch.tensor(-1.0, dtype=f64))


def test_factors_are_kept_only_on_request() -> None:
    data = random_program()
    with_, without = (reference.solve(data, 2, RULES, "auto", keep=keep) for keep in (True, False))
    assert without.factors.shape[1] == 0
    assert torch.equal(with_.x, without.x)
    assert torch.equal(with_.state, without.state)
