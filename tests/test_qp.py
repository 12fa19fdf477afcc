# SPDX-License-Identifier: Apache-2.0
"""solve_qp: laws of the solution, broadcasting, failures, settings, warm starts, and every route through torch."""

import re
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from optlayer import ProblemError, Settings, SettingsError, Solution, SolverError, Status, solve_qp
from optlayer.problem import NAMES, Problem
from optlayer.testing import assert_gradients, assert_optimal, random_qp

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("engine")

VALUES = ("x", "y", "z", "z_box", "s")


def close(a: Tensor, b: Tensor) -> None:
    """Equal but for rounding: the problems here are of size one and well conditioned."""
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def same(a: Solution, b: Solution) -> None:
    for name in VALUES:
        close(getattr(a, name), getattr(b, name))


# ---- problems solved by hand -----------------------------------------------------------------------------------------


def test_no_constraint_is_a_linear_system() -> None:
    P, q = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=F64), torch.tensor([-1.0, 2.0], dtype=F64)
    close(solve_qp(P, q).x, torch.tensor([1.0, -1.0], dtype=F64))  # 2 - 1 = 1, 1 - 3 = -2


def test_bounds_clamp() -> None:
    """min |x - t|^2 / 2 within bounds: x = clamp(t), z_box = t - x."""
    t = torch.tensor([-2.0, 0.3, 5.0], dtype=F64)
    solution = solve_qp(torch.eye(3, dtype=F64), -t, lb=-1, ub=1)
    close(solution.x, t.clamp(-1, 1))
    close(solution.z_box, t - t.clamp(-1, 1))


@pytest.mark.parametrize(("side", "expected"), [("lb", [0.0, 0.3, 5.0]), ("ub", [-2.0, 0.0, 0.0])])
def test_either_bound_may_come_alone(side: str, expected: list[float]) -> None:
    t = torch.tensor([-2.0, 0.3, 5.0], dtype=F64)
    close(solve_qp(torch.eye(3, dtype=F64), -t, **{side: 0}).x, torch.tensor(expected, dtype=F64))


def test_an_equality_has_the_multiplier_that_stationarity_asks_for() -> None:
    """min |x|^2 / 2, x_1 + x_2 = 2: x = (1, 1), and x + A'y = 0 gives y = -1."""
    solution = solve_qp(
        torch.eye(2, dtype=F64),
        torch.zeros(2, dtype=F64),
        A=torch.ones(1, 2, dtype=F64),
        b=torch.tensor([2.0], dtype=F64),
    )
    close(solution.x, torch.ones(2, dtype=F64))
    close(solution.y, -torch.ones(1, dtype=F64))


def test_a_linear_program_ends_in_a_vertex() -> None:
    """max x_1 + 2 x_2, x_1 + x_2 <= 1, x >= 0: x = (0, 1), z = 2, and z_box = -(q + G'z) = (-1, 0)."""
    q, one = torch.tensor([-1.0, -2.0], dtype=F64), torch.ones(1, 2, dtype=F64)
    solution = solve_qp(None, q, one, one[:, 0], lb=0.0)
    close(solution.x, torch.tensor([0.0, 1.0], dtype=F64))
    close(solution.z, torch.tensor([2.0], dtype=F64))
    close(solution.z_box, torch.tensor([-1.0, 0.0], dtype=F64))
    close(solution.s, torch.tensor([0.0], dtype=F64))


# ---- laws ------------------------------------------------------------------------------------------------------------

KINDS = [
    pytest.param(6, 5, 2, True, "regular", id="all blocks"),
    pytest.param(6, 5, 0, False, "psd", id="singular P"),
    pytest.param(6, 0, 2, True, "regular", id="equalities and bounds"),
    pytest.param(6, 7, 2, True, "lp", id="linear program"),
]


@pytest.mark.parametrize(("n", "m", "p", "bounds", "kind"), KINDS)
def test_solutions_are_optimal(n: int, m: int, p: int, bounds: bool, kind: Any) -> None:
    for dtype in (F64, torch.float32):
        solution = solve_qp(*random_qp(n, m, p, batch=(7,), kind=kind, bounds=bounds, dtype=dtype, seed=1).tensors)
        assert solution.x.dtype is dtype
        assert_optimal(solution)


def test_only_the_symmetric_part_of_P_counts() -> None:
    problem = random_qp(5, 4, 1, seed=2)
    P, *rest = problem.tensors
    assert P is not None
    skew = torch.randn(5, 5, dtype=F64)
    same(solve_qp(P + skew - skew.T, *rest), solve_qp(P, *rest))  # type: ignore[arg-type]


def test_scaling_the_objective_scales_the_multipliers() -> None:
    P, q, *rest = random_qp(5, 4, 1, bounds=True, seed=3).tensors
    assert P is not None
    a, b = solve_qp(P, q, *rest), solve_qp(1e4 * P, 1e4 * q, *rest)
    close(a.x, b.x)
    for name in ("y", "z", "z_box"):
        close(1e4 * getattr(a, name), getattr(b, name))


def test_permuting_rows_permutes_multipliers_and_slacks() -> None:
    P, q, G, h, *rest = random_qp(5, 4, 1, seed=4).tensors
    assert G is not None
    assert h is not None
    order = torch.tensor([2, 0, 3, 1])
    a, b = solve_qp(P, q, G, h, *rest), solve_qp(P, q, G[order], h[order], *rest)
    close(a.x, b.x)
    close(a.z[order], b.z)
    close(a.s[order], b.s)


def test_bounds_are_rows() -> None:
    P, q, _, _, A, b, lb, ub = random_qp(5, 0, 2, bounds=True, seed=5).tensors
    assert lb is not None
    assert ub is not None
    eye = torch.eye(5, dtype=F64)
    boxed, rows = (
        solve_qp(P, q, None, None, A, b, lb, ub),
        solve_qp(P, q, torch.cat([-eye, eye]), torch.cat([-lb, ub]), A, b),
    )
    close(boxed.x, rows.x)
    close(boxed.z_box, rows.z[5:] - rows.z[:5])


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_equals_its_elements() -> None:
    problem = random_qp(5, 4, 2, batch=(2, 3), bounds=True, seed=6)
    together = solve_qp(*problem.tensors)
    for i in range(2):
        for j in range(3):
            alone = solve_qp(*(None if t is None else t[i, j] for t in problem.tensors))  # type: ignore[arg-type]
            for name in VALUES:
                close(getattr(together, name)[i, j], getattr(alone, name))


def test_arguments_broadcast_and_shared_ones_get_the_sum_of_the_gradients() -> None:
    P, q, G, h, A, b, lb, ub = random_qp(5, 4, 2, bounds=True, seed=7).tensors
    more = q + 0.1 * torch.randn(4, 1, 5, dtype=F64)
    assert h is not None
    wide = h + 0.1 * torch.rand(3, 4, dtype=F64)
    given = {"P": P, "q": more, "G": G, "h": wide, "A": A, "b": b, "lb": lb, "ub": ub}
    shared = {name: t.clone().requires_grad_() for name, t in given.items() if t is not None}
    cores = {"P": 2, "G": 2, "A": 2}
    expanded = {
        name: t.detach().expand(4, 3, *t.shape[t.ndim - cores.get(name, 1) :]).clone().requires_grad_()
        for name, t in shared.items()
    }
    a, c = solve_qp(**shared), solve_qp(**expanded)
    assert a.x.shape == (4, 3, 5)
    assert (a.problem.batch, c.problem.batch) == ((4, 3), (4, 3))
    same(a, c)
    for solution, tensors in ((a, shared), (c, expanded)):
        solution.x.square().sum().add(solution.z.sum()).backward()
        assert all(t.grad is not None for t in tensors.values())
    for name, t in shared.items():
        gradient, each = t.grad, expanded[name].grad
        assert gradient is not None
        assert each is not None
        close(gradient, each.sum_to_size(t.shape))


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_an_empty_batch_is_solved_and_differentiated(batch: tuple[int, ...]) -> None:
    P, q, *rest = random_qp(5, 4, 2, batch=batch, bounds=True, shared=("P",)).tensors
    assert P is not None
    P.requires_grad_()
    solution = solve_qp(P, q, *rest)
    assert solution.x.shape == (*batch, 5)
    assert solution.status.shape == batch
    solution.x.sum().backward()
    assert P.grad is not None
    assert (P.grad == 0).all()


# ---- gradients -------------------------------------------------------------------------------------------------------


def replaced(problem: Problem, indices: list[int], outputs: tuple[str, ...] = VALUES) -> Any:
    """The problem as a function of some of its tensors."""

    def function(*given: Tensor) -> list[Tensor]:
        tensors: list[Any] = list(problem.tensors)
        for i, t in zip(indices, given, strict=True):
            tensors[i] = t
        solution = solve_qp(*tensors)
        return [getattr(solution, name) for name in outputs]

    return function


@pytest.mark.parametrize(("n", "m", "p", "bounds", "kind"), KINDS)
def test_every_output_is_differentiable_in_every_argument(n: int, m: int, p: int, bounds: bool, kind: Any) -> None:
    problem = random_qp(n, m, p, batch=(2,), kind=kind, bounds=bounds, shared=("G",), seed=8)
    indices = [i for i, t in enumerate(problem.tensors) if t is not None]
    assert_gradients(replaced(problem, indices), [t for t in problem.tensors if t is not None], directions=2)


def test_a_learned_number_as_bound_has_a_gradient() -> None:
    """x = min(t, u): the entries that u clamps each contribute one."""
    u = torch.tensor(1.0, dtype=F64, requires_grad=True)
    solve_qp(torch.eye(3, dtype=F64), torch.tensor([-2.0, 0.0, -3.0], dtype=F64), ub=u).x.sum().backward()
    assert u.grad is not None
    assert u.grad.item() == pytest.approx(2, abs=1e-12)


# ---- failures --------------------------------------------------------------------------------------------------------


def poisoned() -> tuple[Problem, list[Status]]:
    """A batch whose odd elements fail, each in its own way."""
    problem = random_qp(5, 4, 1, batch=(9,), bounds=True, seed=9)
    P, q, G, h, _, _, lb, ub = problem.tensors
    assert P is not None
    assert G is not None
    assert h is not None
    assert lb is not None
    assert ub is not None
    q[1, 0] = torch.nan
    P[3] -= 10 * torch.eye(5, dtype=F64)
    G[5, 1], h[5, 1] = -G[5, 0], -h[5, 0] - 1
    lb[7, 2], ub[7, 2] = 1, 0
    status = [Status.SOLVED] * 9
    status[1::2] = [Status.INVALID_DATA, Status.NON_CONVEX, Status.PRIMAL_INFEASIBLE, Status.PRIMAL_INFEASIBLE]
    return problem, status


def test_a_failed_element_has_its_own_status_and_touches_no_bit_of_its_neighbours() -> None:
    healthy = solve_qp(*random_qp(5, 4, 1, batch=(9,), bounds=True, seed=9).tensors)
    problem, status = poisoned()
    solution = solve_qp(*problem.tensors)
    assert solution.status.tolist() == status
    for name in VALUES:
        found, expected = getattr(solution, name), getattr(healthy, name)
        assert torch.equal(found[::2], expected[::2])
        assert found[1::2].isnan().all()


def test_a_masked_loss_trains_on_and_an_unmasked_one_says_nan() -> None:
    problem, _ = poisoned()
    tensors = [None if t is None else t.clone().requires_grad_() for t in problem.tensors]
    solution = solve_qp(*tensors)  # type: ignore[arg-type]
    solution.x[solution.solved].square().sum().backward()
    for name, t in zip(NAMES, tensors, strict=True):
        assert t is not None
        assert t.grad is not None
        assert t.grad.isfinite().all(), name
        assert (t.grad[1::2] == 0).all(), name
    assert tensors[1] is not None
    (gradient,) = torch.autograd.grad(solve_qp(*tensors).x.sum(), tensors[1])  # type: ignore[arg-type]
    assert gradient.isnan().any(-1).tolist() == [False, True] * 4 + [False]


def test_on_failure_raise_names_element_status_and_advice() -> None:
    problem, _ = poisoned()
    with pytest.raises(SolverError, match=r"element 1: INVALID_DATA in q \(4 of 9 failed\)\. The data hold a NaN"):
        solve_qp(*problem.tensors, on_failure="raise")
    assert_optimal(solve_qp(*random_qp(3).tensors, on_failure="raise"))


def test_on_failure_warn_warns_and_goes_on() -> None:
    problem, _ = poisoned()
    with pytest.warns(RuntimeWarning, match=r"element 1: INVALID_DATA"):
        solution = solve_qp(*problem.tensors, on_failure="warn")
    assert solution.solved.tolist() == [True, False] * 4 + [True]
    silent = solve_qp(*problem.tensors)
    for name in VALUES:
        assert torch.equal(getattr(solution, name).nan_to_num(1e300), getattr(silent, name).nan_to_num(1e300))
    assert solution.x[1].isnan().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_crossed_bounds_are_named_by_their_variable(backend: str) -> None:
    lb = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.5, 1.25]], dtype=F64)
    problem = {"q": torch.ones(3, dtype=F64), "lb": lb, "ub": torch.ones(3, dtype=F64), "backend": backend}
    message = r"element 1: PRIMAL_INFEASIBLE, as lb exceeds ub by 0.5 for variable 1 \(1 of 2 failed\)"
    with pytest.raises(SolverError, match=message):
        solve_qp(None, **problem, on_failure="raise")
    assert solve_qp(None, **problem).status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE]


WRONG_RIGHT_HAND_SIDES: list[tuple[dict[str, Any], str]] = [
    ({"r_x": 1.0}, "r_x is a float, expected a torch.Tensor or None"),
    ({"r_x": torch.ones(3)}, "r_x is torch.float32 on cpu, expected torch.float64 on cpu as x"),
    ({"r_y": torch.ones(1, dtype=F64, device="meta")}, "r_y is torch.float64 on meta, expected torch.float64 on cpu"),
    ({"r_x": torch.ones((), dtype=F64)}, r"r_x has shape \(\), expected \(\*batch, 3\)"),
    ({"r_x": torch.ones(2, 4, dtype=F64)}, r"r_x has shape \(2, 4\), expected \(\*batch, 3\)"),
    ({"r_y": torch.ones(2, dtype=F64)}, r"r_y has shape \(2,\), expected \(\*batch, 1\)"),
    (
        {"r_z": torch.ones(3, 4, dtype=F64)},
        r"leading dimensions are r_z \(3,\), expected such as broadcast .* the batch \(2,\)",
    ),
    (
        {"r_x": torch.ones(5, 2, 3, dtype=F64), "r_box": torch.ones(4, 2, 3, dtype=F64)},
        r"leading dimensions are r_x \(5, 2\), r_box \(4, 2\), expected such as broadcast",
    ),
]


@pytest.mark.parametrize("entropy", [None, 0.5])
@pytest.mark.parametrize(("r", "message"), WRONG_RIGHT_HAND_SIDES)
def test_a_wrong_right_hand_side_is_refused(entropy: float | None, r: dict[str, Any], message: str) -> None:
    solution = solve_qp(*random_qp(3, 4, 1, batch=(2,)).tensors, entropy=entropy)
    with pytest.raises(ProblemError, match=message):
        solution.kkt.solve(**r)
    assert solution.kkt.solve(torch.ones(7, 1, 3, dtype=F64)).x.shape == (7, 2, 3)


def test_on_failure_ignore_returns_the_best_iterate() -> None:
    problem = random_qp(20, 30, 0, batch=(3,), seed=10)
    solution = solve_qp(*problem.tensors, max_iter=1, on_failure="ignore")
    assert not solution.solved.all()
    assert solution.x.isfinite().all()
    assert torch.equal(solution.solved, solution.is_optimal())


def test_the_random_state_is_untouched() -> None:
    before = torch.random.get_rng_state()
    solve_qp(*random_qp(5, 4, 1).tensors)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_malformed_problems_raise_before_any_work() -> None:
    with pytest.raises(ProblemError, match=re.escape("P has shape (3, 3), expected (*batch, 2, 2)")):
        solve_qp(torch.eye(3, dtype=F64), torch.zeros(2, dtype=F64))


def test_overrides_are_settings() -> None:
    problem = random_qp(4, 3)
    assert solve_qp(*problem.tensors).settings == Settings().resolve(F64)
    solution = solve_qp(*problem.tensors, settings=Settings(max_iter=50), eps_abs=1e-5)
    assert solution.settings == Settings(max_iter=50, eps_abs=1e-5, eps_rel=1e-9)
    single = solve_qp(*random_qp(4, 3, dtype=torch.float32).tensors)
    assert single.settings == Settings(eps_abs=1e-5, eps_rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 1e-3}, "'tolerance' is no setting, expected one of eps_abs"),
        ({"max_iter": 0}, "max_iter is 0, expected an integer >= 1"),
        ({"settings": {"max_iter": 3}}, "settings is {'max_iter': 3}, expected an optlayer.Settings"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        solve_qp(None, torch.zeros(2, dtype=F64), **arguments)


@pytest.mark.parametrize("formulation", ["auto", "split", "range"])
def test_every_formulation_gives_the_same_solution(formulation: str) -> None:
    problem = random_qp(6, 4, 2, batch=(3,), seed=11)
    same(solve_qp(*problem.tensors, formulation=formulation), solve_qp(*problem.tensors, backend="reference"))


# ---- warm starts -----------------------------------------------------------------------------------------------------


def test_a_warm_start_changes_the_work_and_not_the_solution() -> None:
    problem = random_qp(10, 15, 2, batch=(4,), bounds=True, seed=12)
    cold = solve_qp(*problem.tensors)
    q = problem.q + 1e-4
    exact = solve_qp(problem.P, q, *problem.tensors[2:])
    for guess in (cold, (cold.x, cold.y, cold.z, cold.z_box), (cold.x[0], None, None, None)):
        warm = solve_qp(problem.P, q, *problem.tensors[2:], warm_start=guess)
        assert_optimal(warm)
        same(warm, exact)
    assert solve_qp(*problem.tensors, warm_start=cold).iterations.sum() < cold.iterations.sum()


def test_a_warm_start_from_failed_elements_is_harmless() -> None:
    problem, _ = poisoned()
    healthy = random_qp(5, 4, 1, batch=(9,), bounds=True, seed=9)
    same(solve_qp(*healthy.tensors, warm_start=solve_qp(*problem.tensors)), solve_qp(*healthy.tensors))


def test_a_warm_start_has_no_gradient() -> None:
    problem = random_qp(4, 3, 1, seed=13)
    guess = torch.zeros(4, dtype=F64, requires_grad=True)
    q = problem.q.clone().requires_grad_()
    x = solve_qp(problem.P, q, *problem.tensors[2:], warm_start=(guess, None, None, None)).x
    assert torch.autograd.grad(x.sum(), [q, guess], allow_unused=True)[1] is None


@pytest.mark.parametrize(
    ("guess", "message"),
    [
        (torch.zeros(4, dtype=F64), "warm_start is a torch.Tensor, expected a Solution or (x, y, z, z_box), of which"),
        ((None, None), "warm_start is a tuple of 2, expected a Solution or (x, y, z, z_box)"),
        (
            (torch.zeros(4), None, None, None),
            "x of warm_start is torch.float32 on cpu, expected a tensor of torch.float64",
        ),
        ((None, None, [0.0], None), "z of warm_start is a list, expected a tensor of torch.float64 on cpu"),
        (
            (None, torch.zeros(2, dtype=F64), None, None),
            "y of warm_start has shape (2,), expected one that broadcasts to (5, 1)",
        ),
        (
            (torch.zeros(3, 4, dtype=F64), None, None, None),
            "x of warm_start has shape (3, 4), expected one that broadcasts to (5, 4)",
        ),
        (
            (None, None, None, torch.zeros(2, 5, 4, dtype=F64)),
            "z_box of warm_start has shape (2, 5, 4), expected one that broadcasts to (5, 4)",
        ),
    ],
)
def test_a_wrong_warm_start_is_refused(guess: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)):
        solve_qp(*random_qp(4, 3, 1, batch=(5,)).tensors, warm_start=guess)


# ---- routes through torch --------------------------------------------------------------------------------------------


def test_autocast_solves_half_precision_in_single_precision() -> None:
    problem = random_qp(5, 4, 1, batch=(3,), bounds=True, seed=14, dtype=torch.bfloat16)
    expected = solve_qp(*problem.to(torch.float32).tensors)
    q = problem.q.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = solve_qp(problem.P, q, *problem.tensors[2:])
        jacobian = solution.jacobian("x", "q")
        point = solution.kkt.solve(r_x=solution.x)
    assert solution.x.dtype is jacobian.dtype is point.x.dtype is torch.float32
    assert torch.equal(solution.x, expected.x)
    assert torch.equal(jacobian, expected.jacobian("x", "q"))
    assert solution.is_optimal().all()
    solution.x.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype is torch.bfloat16


def test_one_graph_serves_all_batch_sizes_and_its_gradients_are_those_of_eager_mode() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(P: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        solution = solve_qp(P, q, G, h, lb=-2.0, max_iter=100)
        return solution.x.square().sum() + solution.z.sum() + solution.objective.sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for size in (5, 7, 9):
        P, q, G, h, *_ = random_qp(6, 4, batch=(size,), shared=("P", "G"), seed=size).tensors
        assert P is not None
        assert G is not None
        assert h is not None
        given = [t.requires_grad_() for t in (P, q, G, h)]
        expected = torch.autograd.grad(loss(*given), given)
        for a, b in zip(expected, torch.autograd.grad(compiled(*given), given), strict=True):
            close(a, b)
        graphs.append(counter.frame_count)  # Dynamo may call the backend twice before it settles for a graph
    assert graphs == graphs[:1] * 3


def test_export_holds_one_operator() -> None:
    class Layer(nn.Module):
        def forward(self, P: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
            return solve_qp(P, q, G, h, ub=3.0).x

    P, q, G, h, *_ = random_qp(6, 4, batch=(5,), seed=15).tensors
    given: Any = (P, q, G, h)
    dynamic = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Layer(), given, dynamic_shapes=(dynamic,) * 4)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(name == "optlayer.qp.default" for name in names) == 1
    more: Any = random_qp(6, 4, batch=(8,), seed=16).tensors[:4]
    close(program.module()(*more), Layer()(*more))


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    problem = random_qp(6, 4, 2, batch=(3,), bounds=True)
    real = solve_qp(*problem.tensors)
    shapes = {name: getattr(real, name).shape for name in (*VALUES, "status", "solved", "objective")}
    shape = real.jacobian("x", "G").shape
    with torch._subclasses.FakeTensorMode() as mode:
        fake = solve_qp(*(None if t is None else mode.from_tensor(t) for t in problem.tensors))  # type: ignore[arg-type]
        assert {name: getattr(fake, name).shape for name in shapes} == shapes
        assert fake.jacobian("x", "G").shape == shape


def test_functional_transforms_agree() -> None:
    problem = random_qp(5, 4, 1, bounds=True, seed=17)
    _, q, *_ = problem.tensors

    def value(q: Tensor) -> Tensor:
        return solve_qp(problem.P, q, *problem.tensors[2:]).objective

    x = solve_qp(*problem.tensors)
    close(torch.func.grad(value)(q), x.x)  # the envelope theorem
    close(torch.func.jacrev(torch.func.grad(value))(q), x.jacobian("x", "q"))
    close(torch.func.hessian(value)(q), x.jacobian("x", "q"))
    more = q + torch.randn(3, 5, dtype=F64)
    close(torch.func.vmap(torch.func.grad(value))(more), solve_qp(problem.P, more, *problem.tensors[2:]).x)
