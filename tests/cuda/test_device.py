# SPDX-License-Identifier: Apache-2.0
"""The engine for CUDA on a GPU: the contract of every engine, and what a GPU asks for besides."""

from __future__ import annotations

import pytest
import torch
from device_cases import AGREE, close, on_device, solve
from entropic_cases import CURVATURES, entropic
from torch import Tensor

import optlayer
from benchmarks.cuda_without_gpu import CASES, TEAMS
from optlayer import Status
from optlayer.solvers import native
from optlayer.testing import assert_optimal, random_qp

pytestmark = pytest.mark.cuda
OPTIONS = (1e-9, 1e-9, 200, 0, True, True)


@pytest.fixture(autouse=True)
def engine_for_cuda() -> None:
    assert native.cuda_build() is not None, native.why_not_cuda()


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("name", CASES)
def test_every_mapping_agrees_with_the_reference(name: str, team: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTLAYER_TEAM", str(team))
    tensors = on_device(name, (37,), 3)
    ours, theirs = solve(tensors, "native"), solve(tensors, "reference")
    assert_optimal(ours)
    assert torch.equal(ours.status, theirs.status)
    assert torch.equal(ours.weakly_active, theirs.weakly_active)
    for a, b in zip(
        (ours.x, ours.s, ours.y, ours.z, ours.z_box),
        (theirs.x, theirs.s, theirs.y, theirs.z, theirs.z_box),
        strict=True,
    ):
        close(a, b)


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("name", CASES)
def test_every_mapping_has_the_derivative_of_the_reference(
    name: str, team: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTLAYER_TEAM", str(team))
    gradients = []
    for backend in ("native", "reference"):
        tensors = [None if t is None else t.requires_grad_() for t in on_device(name, (9,), 5)]
        found = solve(tensors, backend)
        outputs = (found.x, found.y, found.z, found.z_box, found.s)
        weights = [torch.linspace(0.5, 1.5, t.numel(), device=t.device).reshape(t.shape) for t in outputs]
        loss = sum((t * w).sum() for t, w in zip(outputs, weights, strict=True) if t.numel())
        gradients.append(torch.autograd.grad(loss, [t for t in tensors if t is not None]))
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", ["softmax", "cap", "moment and rows", "transport", "floor"])
def test_every_mapping_solves_entropic_programs(
    kind: str, curvature: str, team: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both engines end at the rounding of the forces, 1e-11 apart on one processor; here exp and log differ too."""
    monkeypatch.setenv("OPTLAYER_TEAM", str(team))
    given = entropic(kind, batch=37, scale=10.0, curvature=curvature)
    found = []
    for backend, device in (("native", "cuda"), ("reference", "cpu")):
        there = {name: t if t is None else t.to(device) for name, t in given.items()}
        q = there["q"].requires_grad_()
        solution = optlayer.solve_qp(**{**there, "q": q}, backend=backend)
        (gradient,) = torch.autograd.grad(solution.x.square().sum() + solution.log_x.sum(), q)
        found.append([t.detach().cpu() for t in (solution.status, solution.x, solution.s, solution.log_x, gradient)])
    (status, *ours), (expected, *theirs) = found
    assert torch.equal(status, expected)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-9)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (1000,), (3, 5), (2, 0, 3)], ids=str)
def test_any_leading_dimensions(batch: tuple[int, ...]) -> None:
    tensors = on_device("everything", batch, 1)
    ours = solve(tensors, "native")
    assert ours.x.shape == (*batch, 11) and ours.status.shape == batch
    assert bool((ours.status == Status.SOLVED).all())


def test_a_batch_that_broadcasts_is_not_copied() -> None:
    P, q, G, h, *rest = on_device("dense", (), 2)
    assert q is not None and h is not None
    many = q + torch.randn(3, 1, 10, device="cuda", dtype=q.dtype)
    wide = h + torch.rand(1, 4, 10, device="cuda", dtype=q.dtype)  # no single stride will do for either
    ours = solve([P, many, G, wide, *rest], "native")
    whole = [None if t is None else t.expand(3, 4, *t.shape).contiguous() for t in (P, q, G, h, *rest)]
    whole[1], whole[3] = many.expand(3, 4, 10).contiguous(), wide.expand(3, 4, 10).contiguous()
    close(ours.x, solve(whole, "native").x, AGREE)


def test_float32_is_solved_in_float64_and_rounded() -> None:
    tensors = on_device("everything", (50,), 4, torch.float32)
    ours, theirs = solve(tensors, "native"), solve(tensors, "reference")
    assert ours.x.dtype == torch.float32
    assert torch.equal(ours.status, theirs.status)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-5, atol=1e-5)


def test_a_million_small_problems() -> None:
    P, q, G, h, *rest = on_device("tiny", (), 6)
    assert q is not None
    many = q + 0.1 * torch.randn(1_000_000, 4, device="cuda", dtype=q.dtype)
    ours = solve([P, many, G, h, *rest], "native")
    assert bool((ours.status == Status.SOLVED).all())
    some = slice(None, None, 9973)
    close(ours.x[some], solve([P, many[some], G, h, *rest], "native").x, 0)


def test_failures_are_reported_element_by_element() -> None:
    P, q, G, h, *rest = on_device("dense", (4,), 8)
    assert q is not None and G is not None and h is not None
    G[1, 0], h[1, 0] = 0, -1  # 0 <= -1
    q[2, 3] = torch.nan
    found = solve([P, q, G, h, *rest], "native")
    assert found.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.INVALID_DATA, Status.SOLVED]
    assert bool(found.x[1:3].isnan().all()) and not bool(found.x[::3].isnan().any())


def test_the_same_bits_every_time() -> None:
    tensors = on_device("everything", (3000,), 9)
    first, again = solve(tensors, "native"), solve(tensors, "native")
    reverse = solve([None if t is None else t.flip(0) for t in tensors], "native")
    assert torch.equal(first.x, again.x) and torch.equal(first.x, reverse.x.flip(0))
    w, u = (
        [torch.randn(50_000, k, device="cuda") for k in (6, 2, 4)],
        [torch.randn(50_000, k, device="cuda") for k in (6, 2, 4)],
    )
    sums = [torch.ops.optlayer_native.pull(*w, *u, 2, 2, 2) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))


@pytest.mark.parametrize("wanted", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_gradients_of_matrices_are_those_of_the_cpu(wanted: tuple[int, int, int]) -> None:
    vectors = [torch.randn(300, k, dtype=torch.float64) for k in (40, 3, 25) * 2]
    vectors[0][7] = vectors[1][7] = vectors[2][7] = torch.nan  # failed, and without a gradient
    for t in vectors[3:]:
        t[7] = 0
    ours = torch.ops.optlayer_native.pull(*(t.cuda() for t in vectors), *wanted)
    for a, b in zip(ours, torch.ops.optlayer_native.pull(*vectors, *wanted), strict=True):
        close(a.cpu(), b, 1e-12)


def test_opcheck() -> None:
    P, q, G, h, A, b, lb, ub = on_device("everything", (3,), 1)
    program = (P, q, G, h, A, b, lb, ub)
    torch.library.opcheck(torch.ops.optlayer_native.qp.default, (*program, *OPTIONS))
    *out, _ = torch.ops.optlayer_native.qp(*program, *OPTIONS)
    r = [torch.randn(2, *t.shape, dtype=t.dtype, device="cuda") for t in out[:4]]
    torch.library.opcheck(torch.ops.optlayer_native.kkt_solve.default, (P, G, A, *out[10:13], *r))
    one = [t[0] for t in r]
    torch.library.opcheck(torch.ops.optlayer_native.kkt_pull.default, (P, G, A, *out[10:13], *one, *out[:3], 1, 2, 1))
    x, y, z, ux, uy, uz = (*out[:3], *(t[0] for t in r[:3]))
    torch.library.opcheck(torch.ops.optlayer_native.pull.default, (x, y, z, ux, uy, uz, 0, 1, 2))


@pytest.mark.parametrize("shared", [(), ("P", "G", "A")], ids=["each", "shared"])
def test_a_backward_pass_is_one_operator(shared: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("kkt_solve", "pull", "kkt_pull"):
        inner = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, name=name, inner=inner: calls.append(name) or inner(*a))
    gradients = []
    for backend in ("native", "reference"):
        problem = random_qp(**CASES["everything"], batch=(200,), shared=shared, seed=4)
        tensors = [None if t is None else t.cuda().requires_grad_() for t in problem.tensors]
        x = solve(tensors, backend).x
        gradients.append(torch.autograd.grad(x.square().sum(), [t for t in tensors if t is not None]))
    assert calls == ["kkt_pull"]
    for a, b in zip(*gradients, strict=True):
        close(a, b)


def test_a_factor_made_anew_is_as_good_as_one_that_was_kept() -> None:
    gradients = []
    for factorisation in ("keep", "recompute"):
        P, q, *rest = on_device("everything", (20,), 2)
        assert q is not None
        found = solve([P, q.requires_grad_(), *rest], "native", factorisation=factorisation)
        gradients += torch.autograd.grad(found.x.square().sum(), q)
    close(*gradients, 1e-8)


def test_the_current_stream_is_used() -> None:
    tensors = on_device("dense", (2000,), 3)
    expected = solve(tensors, "native").x
    side = torch.cuda.Stream()
    slow = torch.randn(6000, 6000, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(20):
            slow = slow @ slow * 1e-3  # what follows on this stream has to wait
        q = tensors[1]
        assert q is not None
        late = torch.where(slow.sum().isnan(), q, q)
        x = solve([tensors[0], late, *tensors[2:]], "native").x
    side.synchronize()
    assert torch.equal(x, expected)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_kernels() -> None:
    tensors = on_device("dense", (100,), 3)
    torch.ops.optlayer_native.qp(*tensors, *OPTIONS)
    torch.cuda.synchronize()
    with_error = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        *out, unsolved = torch.ops.optlayer_native.qp(*tensors, *OPTIONS)
        r = [torch.ones_like(t) for t in out[:4]]
        torch.ops.optlayer_native.kkt_solve(tensors[0], tensors[2], tensors[4], *out[10:13], *r)
    finally:
        torch.cuda.set_sync_debug_mode(with_error)
    assert unsolved == -1


def test_a_cuda_graph_records_forward_and_backward() -> None:
    P, q, *rest = on_device("everything", (64,), 5)
    assert P is not None and q is not None

    def step(q: Tensor) -> tuple[Tensor, Tensor]:
        leaf = q.detach().requires_grad_()
        found = optlayer.solve_qp(P, leaf, *rest, backend="native")
        (gradient,) = torch.autograd.grad(found.x.square().sum(), leaf)
        return found.x.detach(), gradient

    other = q + torch.randn_like(q)
    expected = step(other)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(q)
    torch.cuda.current_stream().wait_stream(side)
    graph, static = torch.cuda.CUDAGraph(), q.clone()
    with torch.cuda.graph(graph):
        x, gradient = step(static)
    static.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(x, expected[0]) and torch.equal(gradient, expected[1])


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # of the float32 products that there are none of
def test_compiled() -> None:
    P, q, *rest = on_device("everything", (16,), 7)
    assert q is not None
    q.requires_grad_()

    def loss(q: Tensor) -> Tensor:
        return optlayer.solve_qp(P, q, *rest, backend="native").x.square().sum()

    (eager,) = torch.autograd.grad(loss(q), q)
    (compiled,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(q), q)
    close(compiled, eager, 1e-10)


def test_other_devices_are_left_alone() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    tensors = on_device("dense", (10,), 3)
    there = [None if t is None else t.to("cuda:1") for t in tensors]
    with torch.cuda.device(0):
        x = solve(there, "native").x
        assert x.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    close(x.cpu(), solve(tensors, "native").x.cpu(), 1e-12)
