# SPDX-License-Identifier: Apache-2.0
"""The native engine against the reference engine: the same contract, the same answers, lane by lane."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import Status
from optlayer.problem import NAMES, Problem
from optlayer.solvers import choose, native
from optlayer.testing import assert_optimal, random_qp

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine is not built")

CASES = {
    "dense": {"n": 10, "m": 10},
    "wide": {"n": 12, "m": 30},
    "equalities": {"n": 10, "m": 8, "p": 4},
    "only equalities": {"n": 7, "p": 3},
    "bounds": {"n": 9, "bounds": True},
    "everything": {"n": 11, "m": 7, "p": 3, "bounds": True},
    "psd": {"n": 10, "m": 12, "p": 2, "kind": "psd", "bounds": True},
    "lp": {"n": 8, "m": 12, "p": 2, "kind": "lp", "bounds": True},
    "redundant": {"n": 10, "m": 6, "p": 3, "kind": "redundant"},
    "one variable": {"n": 1, "m": 2, "bounds": True},
    "unconstrained": {"n": 5},
}
AGREE = 1e-7
"""Of x between the engines, relative to its size: both meet 1e-9 in the residuals, and cond(K) is < 100."""


def solve(problem: Problem, backend: str, **settings: object) -> optlayer.Solution:
    P, q, *rest = problem.tensors
    return optlayer.solve_qp(P, q, *rest, backend=backend, **settings)


def close(a: Tensor, b: Tensor, tolerance: float = AGREE) -> None:
    scale = max(1.0, float(b.nan_to_num().abs().max())) if b.numel() else 1.0
    torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [(), (1,), (2,), (3,), (9,), (2, 5)])
def test_both_engines_give_the_same_solution(name: str, batch: tuple[int, ...]) -> None:
    problem = random_qp(**CASES[name], batch=batch, seed=3)
    ours, theirs = solve(problem, "native"), solve(problem, "reference")
    assert_optimal(ours)
    assert torch.equal(ours.status, theirs.status)
    assert torch.equal(ours.weakly_active, theirs.weakly_active)
    close(ours.x, theirs.x)
    close(ours.s, theirs.s)
    if name != "redundant":  # there the multipliers are not unique
        for a, b in ((ours.y, theirs.y), (ours.z, theirs.z), (ours.z_box, theirs.z_box)):
            close(a, b)


@pytest.mark.parametrize("name", CASES)
def test_both_engines_give_the_same_derivative(name: str) -> None:
    if name == "redundant":
        pytest.skip("its multipliers are not unique, and neither are their derivatives")
    problem = random_qp(**CASES[name], batch=(6,), seed=5)
    gradients = []
    for backend in ("native", "reference"):
        tensors = [None if t is None else t.clone().requires_grad_() for t in problem.tensors]
        found = optlayer.solve_qp(tensors[0], tensors[1], *tensors[2:], backend=backend)
        outputs = (found.x, found.y, found.z, found.z_box, found.s)
        loss = sum((t * torch.linspace(0.5, 1.5, t.numel()).reshape(t.shape)).sum() for t in outputs if t.numel())
        gradients.append(torch.autograd.grad(loss, [t for t in tensors if t is not None]))
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", ["dense", "everything"])
def test_no_neighbour_changes_a_bit(name: str) -> None:
    problem = random_qp(**CASES[name], batch=(23,), seed=7)
    whole = solve(problem, "native")
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    tensors = [None if t is None else t[order].contiguous() for t in problem.tensors]
    assert tensors[1] is not None
    tensors[1][3] = torch.nan  # a bad neighbour
    shuffled = solve(Problem(*tensors), "native")
    well = torch.arange(23) != 3
    for a, b in ((whole.x, shuffled.x), (whole.z, shuffled.z), (whole.iterations, shuffled.iterations)):
        assert torch.equal(a[order][well], b[well])
    assert int(shuffled.status[3]) == Status.INVALID_DATA


@pytest.mark.parametrize("kind", ["infeasible", "unbounded"])
def test_problems_without_a_solution_are_certified(kind: str) -> None:
    problem = random_qp(8, 6, 2, batch=(13,), kind=kind)
    found = solve(problem, "native")
    expected = Status.PRIMAL_INFEASIBLE if kind == "infeasible" else Status.DUAL_INFEASIBLE
    assert (found.status == expected).all()
    assert found.x.isnan().all()


def test_a_mixed_batch_keeps_everyone_apart() -> None:
    good = random_qp(6, 5, 2, batch=(4,), seed=1)
    bad = random_qp(6, 5, 2, batch=(4,), seed=1, kind="infeasible")
    tensors = [None if a is None else torch.cat([a, b]) for a, b in zip(good.tensors, bad.tensors, strict=True)]
    assert tensors[1] is not None
    tensors[1][1, 0] = torch.nan
    found = solve(Problem(*tensors), "native")
    expected = [Status.SOLVED] * 4 + [Status.PRIMAL_INFEASIBLE] * 4
    expected[1] = Status.INVALID_DATA
    assert found.status.tolist() == expected
    alone = solve(good, "native")
    assert torch.equal(found.x[[0, 2, 3]], alone.x[[0, 2, 3]])


def test_neighbours_of_other_kinds_change_no_bit() -> None:
    """Lanes with and without bounds, with a definite, a singular and no P, solvable or not."""
    kinds: list[dict[str, Any]] = [
        {"kind": "regular"},
        {"kind": "psd", "bounds": True},
        {"kind": "infeasible"},
        {"kind": "lp", "bounds": True},
        {"kind": "regular", "bounds": True},
        {"kind": "unbounded"},
        {"kind": "weak"},
    ]
    n, m, p = 6, 6, 2  # few enough rows for the range space
    blank = {"P": torch.zeros(n, n), "lb": torch.full((n,), -torch.inf), "ub": torch.full((n,), torch.inf)}
    rows = []
    for seed in range(28):
        found = random_qp(n, m, p, seed=seed, **kinds[seed % len(kinds)])
        rows.append([blank[k].double() if t is None else t for k, t in zip(NAMES, found.tensors, strict=True)])

    def outputs(order: list[int]) -> list[Tensor]:
        tensors = [torch.stack([rows[i][k] for i in order]).requires_grad_() for k in range(8)]
        found = solve(Problem(*tensors), "native")
        kept = (found.status == Status.SOLVED).unsqueeze(-1)
        loss = sum(torch.where(kept, t**2, 0).sum() for t in (found.x, found.y, found.z, found.z_box))
        return [found.status, found.iterations, found.x, found.y, found.z, *torch.autograd.grad(loss, tensors)]

    alone = [outputs([i, i]) for i in range(28)]
    together = outputs(list(range(28)))
    for i in range(28):
        for a, b in zip(alone[i], together, strict=True):
            torch.testing.assert_close(b[i], a[0], atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["regular", "infeasible", "unbounded"])
def test_used_up_iterations_are_a_verdict(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no case for the reference engine, which would say the same after a hundred times as long."""
    problem = random_qp(10, 8, 3, batch=(9,), bounds=True, seed=2, kind=kind).to(dtype)
    theirs = solve(problem, "reference", max_iter=1, on_failure="ignore")
    monkeypatch.setattr(choose, "solve_rest", None)
    ours = solve(problem, "native", max_iter=1, on_failure="ignore")
    limited = ours.status == Status.MAX_ITERATIONS
    assert limited.any() and (theirs.status[limited] == Status.MAX_ITERATIONS).any()
    assert (ours.iterations[limited] == 1).all()
    assert all(t.isfinite().all() for t in (ours.x, ours.y, ours.z, ours.z_box, ours.s))
    assert solve(problem, "native", max_iter=1).x[limited].isnan().all()
    assert not ours.is_optimal()[limited].any()


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_what_is_reached_in_so_many_iterations_does_not_depend_on_the_neighbours(limit: int) -> None:
    P, q, *rest = random_qp(10, 8, 3, batch=(64,), bounds=True, seed=2).tensors
    whole = optlayer.solve_qp(P, q, *rest, backend="native", max_iter=limit, on_failure="ignore")
    part = optlayer.solve_qp(P[1::3], q[1::3], *(t[1::3] for t in rest), max_iter=limit, on_failure="ignore")
    for a, b in zip(whole.factorisation[:2], part.factorisation[:2], strict=True):
        assert torch.equal(a[1::3], b)
    for name in ("x", "y", "z", "z_box", "s", "status", "iterations"):
        assert torch.equal(getattr(whole, name)[1::3], getattr(part, name))


@pytest.mark.parametrize("bounds", [False, True])
@pytest.mark.parametrize("kind", ["infeasible", "unbounded"])
def test_a_neighbour_that_goes_on_does_not_spoil_a_factor(kind: str, bounds: bool) -> None:
    """A lane that is done waits for the others, which work in the memory where its factor was."""
    good = random_qp(6, 5, 2, batch=(4,), seed=1, bounds=bounds)
    bad = random_qp(6, 5, 2, batch=(4,), seed=1, kind=kind, bounds=bounds)
    gradients = []
    for neighbours in (good, bad):
        tensors = []
        for a, b in zip(good.tensors, neighbours.tensors, strict=True):
            tensors.append(None if a is None else torch.stack([a, b], 1).flatten(0, 1).requires_grad_())
        found = solve(Problem(*tensors), "native")
        outputs = (found.x, found.y, found.z, found.z_box)
        loss = sum((t[::2] ** 2).sum() for t in outputs)
        gradients.append(torch.autograd.grad(loss, [t for t in tensors if t is not None]))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a[::2], b[::2])


def test_a_shared_batch_is_solved_like_an_expanded_one() -> None:
    shared = random_qp(9, 8, 2, batch=(21,), shared=("P", "G", "A"), seed=2)
    lead = {"P": 2, "G": 2, "A": 2}
    named = zip(("P", "q", "G", "h", "A", "b", "lb", "ub"), shared.tensors, strict=True)
    copies = [t.expand(21, *t.shape).contiguous() if k in lead and t is not None else t for k, t in named]
    ours, theirs = solve(shared, "native"), solve(Problem(*copies), "native")
    assert (ours.status == Status.SOLVED).all()
    close(ours.x, theirs.x)
    close(ours.z, theirs.z)


@pytest.mark.parametrize("bad", ["q", "h"])
def test_an_invalid_element_leaves_what_the_batch_shares_as_it_was(bad: str) -> None:
    tensors = list(random_qp(6, 8, 2, batch=(40,), shared=("P", "G", "A"), seed=3).tensors)
    rest = *(None,) * 4, 1e-9, 1e-9, 200, "native", "range", "nan", True
    good, _ = native.qp(*tensors, *rest)
    at = NAMES.index(bad)
    tensors[at] = torch.cat([torch.full_like(tensors[at][:1], torch.nan), tensors[at][1:]])
    out, left = native.qp(*tensors, *rest)
    assert left == 0 and out[5][0] == Status.INVALID_DATA
    assert all(torch.equal(ours[1:], theirs[1:]) for ours, theirs in zip(out, good, strict=True))


@pytest.mark.parametrize("seed", [0, 26, 29])
def test_a_degenerate_element_leaves_what_the_batch_shares_as_it_was(seed: int) -> None:
    """More rows meet at the first solution than a factor of the range space keeps: it is factorised by the split."""
    random = torch.Generator().manual_seed(seed)
    full = {"generator": random, "dtype": torch.float64}
    m = int(torch.randint(5, 9, (1,), generator=random))
    L = torch.randn(2, 2, **full)
    P, G, x = L @ L.T + 0.1 * torch.eye(2, dtype=torch.float64), torch.randn(m, 2, **full), torch.randn(2, **full)
    h = (G @ x).repeat(3, 1)
    h[1:] += torch.rand(2, m, **full)
    z = torch.rand(m, **full) * (torch.rand(m, generator=random) < 0.3)
    q = 2 * torch.randn(3, 2, **full)
    q[0] = -P @ x - G.T @ z
    out, left = native.qp(P, q, G, h, *(None,) * 8, 1e-9, 1e-9, 200, "native", "range", "nan", True)
    assert left == 0 and out[5].tolist() == [Status.SOLVED] * 3
    close(out[0][0], x)


def test_gradients_of_shared_matrices_are_sums() -> None:
    shared = random_qp(6, 5, 2, batch=(9,), shared=("P", "G", "A"), seed=2)
    tensors = [None if t is None else t.clone().requires_grad_() for t in shared.tensors]
    named = list(zip(("P", "q", "G", "h", "A", "b", "lb", "ub"), tensors, strict=True))
    copies = [
        t.detach().expand(9, *t.shape).clone().requires_grad_() if k in "PGA" and t is not None else t for k, t in named
    ]
    grads = []
    for given in (tensors, copies):
        x = optlayer.solve_qp(given[0], given[1], *given[2:], backend="native").x
        grads.append(
            torch.autograd.grad((x * x).sum(), [t for t, k in zip(given, "PqGhAb", strict=False) if k in "PGA"])
        )
    for a, b in zip(*grads, strict=True):
        close(a, b.sum(0))


def test_float32_is_as_accurate_as_its_digits() -> None:
    problem = random_qp(10, 8, 3, batch=(11,), bounds=True, seed=4)
    single = solve(problem.to(torch.float32), "native")
    assert single.x.dtype == torch.float32
    assert (single.status == Status.SOLVED).all()
    close(single.x.double(), solve(problem, "native").x, 1e-5)  # of data rounded to 6e-8, and cond(K) < 100


@pytest.mark.parametrize("n", [2, 5, 17, 33, 64, 90, 130])
def test_all_sizes_agree(n: int) -> None:
    for batch in ((), (5,)):
        problem = random_qp(n, n, n // 4, batch=batch, seed=n)
        close(solve(problem, "native").x, solve(problem, "reference").x)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_an_empty_batch_is_solved(batch: tuple[int, ...]) -> None:
    assert solve(random_qp(4, 3, batch=batch), "native").x.shape == (*batch, 4)


def test_threads_change_no_bit() -> None:
    problem = random_qp(10, 10, batch=(257,), seed=8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = solve(problem, "native")
        torch.set_num_threads(2)
        two = solve(problem, "native")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.z, two.z)


def test_what_the_kernels_leave_undecided_the_reference_engine_decides() -> None:
    problem = random_qp(6, 4, batch=(5,), seed=9)
    tensors = list(problem.tensors)
    assert tensors[0] is not None
    tensors[0] = tensors[0].clone()
    tensors[0][2] = -tensors[0][2]
    found = solve(Problem(*tensors), "native")
    assert found.status.tolist() == [Status.SOLVED, Status.SOLVED, Status.NON_CONVEX, Status.SOLVED, Status.SOLVED]


def test_a_warm_start_saves_iterations_and_changes_nothing() -> None:
    problem = random_qp(10, 10, 2, bounds=True, batch=(8,), seed=1)
    P, q, *rest = problem.tensors
    cold = optlayer.solve_qp(P, q, *rest, backend="native")
    warm = optlayer.solve_qp(P, q, *rest, backend="native", warm_start=cold)
    close(warm.x, cold.x)
    assert (warm.status == Status.SOLVED).all()


@pytest.mark.parametrize("formulation", ["range", "split"])
@pytest.mark.parametrize("batch", [(64,), ()])
def test_an_active_set_that_shows_early_saves_the_last_iterations(formulation: str, batch: tuple[int, ...]) -> None:
    def mean(backend: str) -> float:
        problems = [random_qp(n=20, m=20, batch=batch, seed=seed) for seed in range(1 if batch else 16)]
        found = [solve(problem, backend, formulation=formulation).iterations for problem in problems]
        return float(torch.stack(found).double().mean())

    assert mean("native") < mean("reference") - 1


@pytest.mark.parametrize("name", ["dense", "everything", "psd"])
def test_a_recomputed_factorisation_gives_the_same_derivative_from_less_memory(name: str) -> None:
    problem = random_qp(**CASES[name], batch=(6,), seed=5)
    gradients, kept = [], []
    for factorisation in ("keep", "recompute"):
        P, q, *rest = (None if t is None else t.clone().requires_grad_() for t in problem.tensors)
        found = optlayer.solve_qp(P, q, *rest, backend="native", factorisation=factorisation)
        kept.append(found.factorisation.factor.numel())
        given = [t for t in (P, q, *rest) if t is not None]
        gradients.append(torch.autograd.grad((found.x * found.x).sum(), given, allow_unused=True))
    assert kept[0] > 0 == kept[1]
    for a, b in zip(*gradients, strict=True):
        close(a, b, 1e-9)  # the same K, factorised in another order of its rows


ENGINES = pytest.mark.parametrize("backend", ["native", "reference"])


@ENGINES
@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("bounds", [False, True])
def test_the_derivative_does_not_depend_on_the_size_of_the_solution(backend: str, factor: float, bounds: bool) -> None:
    """x(f q, f h, f b, f lb, f ub) = f x(q, h, b, lb, ub), also where no row holds some of the variables."""
    P, q, G, h, A, b, lb, ub = random_qp(8, 6, 2, bounds=bounds, batch=(20,), seed=5).tensors
    assert G is not None
    assert A is not None
    x = optlayer.solve_qp(P, q, G, h, A, b, lb, ub).x.unsqueeze(-1)
    held = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.float64)
    h, b, G, A = h - (G * (1 - held) @ x).squeeze(-1), (A * held @ x).squeeze(-1), G * held, A * held
    gradients = []
    for f in (1.0, factor):
        vectors = [None if t is None else (f * t).requires_grad_() for t in (q, h, b, lb, ub)]
        found = optlayer.solve_qp(P, vectors[0], G, vectors[1], A, vectors[2], *vectors[3:], backend=backend)
        assert_optimal(found)
        cotangent = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(found.x.shape)
        gradients.append(torch.autograd.grad((found.x * cotangent).sum(), [t for t in vectors if t is not None]))
    for one, other in zip(*gradients, strict=True):
        close(other, one)


def test_the_range_space_that_is_asked_for_takes_no_singular_matrix() -> None:
    """P = v v' has a Cholesky factor by rounding alone; x is unique by the equality row."""
    v = torch.tensor([0.7, 0.3], dtype=torch.float64)
    P = torch.outer(v, v)
    P[1, 1] *= 1 + 4e-16
    assert torch.linalg.cholesky_ex(P).info == 0
    q = torch.tensor([-0.3, 0.1], dtype=torch.float64, requires_grad=True)
    A, b = torch.tensor([[1.5, 1.9]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    gradients = []
    for backend in ("native", "reference"):
        x = optlayer.solve_qp(P, q, A=A, b=b, backend=backend, formulation="range").x
        gradients.append(torch.autograd.grad(x[0], q)[0])
    assert gradients[1].norm() > 1
    close(*gradients)


@ENGINES
def test_fixed_variables_may_miss_an_equality_by_their_rounding(backend: str) -> None:
    A, x = random_qp(5, 0, 2, batch=(50,), seed=3).A, torch.linspace(-1, 1, 250, dtype=torch.float64).reshape(50, 5)
    assert A is not None
    A, b, x = (t.float() for t in (A, (A @ x.unsqueeze(-1)).squeeze(-1), x))
    found = optlayer.solve_qp(None, torch.ones_like(x), A=A, b=b, lb=x, ub=x, backend=backend)
    assert (found.status == Status.SOLVED).all()


@ENGINES
def test_an_lp_at_a_vertex_is_not_unbounded_by_its_rounding(backend: str) -> None:
    """-q = G'z with some z = 0: rounded to float32 about half of these have a ray whose descent is rounding."""
    generator = torch.Generator().manual_seed(0)
    G, z = torch.randn(200, 4, 4, generator=generator), torch.rand(200, 4, generator=generator) + 0.1
    z[:, :2] = 0
    q, h = -(G.mT @ z.unsqueeze(-1)).squeeze(-1), torch.ones(200, 4)
    found = optlayer.solve_qp(None, q, G, h, backend=backend)
    assert (found.status != Status.DUAL_INFEASIBLE).all()


@ENGINES
def test_solved_float32_is_optimal_without_bounds_too(backend: str) -> None:
    """A x = b cancels: x is of order 1e3 and rounded to 1e-4, the tolerance of A x is 1e-5."""
    problem = random_qp(4, 0, 1, batch=(30,), seed=2)
    assert problem.A is not None
    q, b = 1e3 * problem.q, torch.zeros(30, 1, dtype=torch.float64)
    tensors = [t.float() for t in (problem.P, q, problem.A, b) if t is not None]
    found = optlayer.solve_qp(*tensors[:2], A=tensors[2], b=tensors[3], backend=backend, on_failure="ignore")
    assert found.is_optimal()[found.solved].all()
    assert (found.status != Status.SOLVED).any()


@ENGINES
def test_a_singular_float32_matrix_has_a_derivative_whatever_its_rounding(backend: str) -> None:
    """Rounding moves the zero eigenvalues of L L' to either side of zero, by some 1e-8: they count as zero.

    Then P dx = -dq has many solutions for dq in the range of P, and the derivative is one of moderate size. 1e-5 is a
    hundred times the rounding of the data.
    """
    L = torch.randn(50, 12, 6, generator=torch.Generator().manual_seed(1))
    P, c = L @ L.mT, (L @ torch.randn(50, 6, 1, generator=torch.Generator().manual_seed(2))).squeeze(-1)
    assert (torch.linalg.eigvalsh(P)[:, 0] < 0).any()
    q = (P @ torch.ones(12)).requires_grad_()
    found = optlayer.solve_qp(P, q, backend=backend)
    assert found.solved.all()
    (gradient,) = torch.autograd.grad(found.x, q, c)
    left = (P.double() @ gradient.double().unsqueeze(-1)).squeeze(-1) + c.double()
    assert (left.norm(dim=-1) <= 1e-5 * c.norm(dim=-1)).all()
    shortest = torch.linalg.pinv(P.double(), rtol=1e-5) @ c.double().unsqueeze(-1)
    assert (gradient.norm(dim=-1) <= 10 * shortest.squeeze(-1).norm(dim=-1)).all()
