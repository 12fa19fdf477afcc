# SPDX-License-Identifier: Apache-2.0
"""Modules: what they parametrise holds for every parameter, they travel as torch modules do, and they train."""

import copy
import io
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import join_group, spawn
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from optlayer import ProblemError, Settings, SettingsError, solve_qp
from optlayer.nn import QPLayer, SoftmaxLayer, _between
from optlayer.testing import assert_gradients, assert_optimal

F64 = torch.float64


def scrambled(layer: QPLayer, seed: int = 0, scale: float = 2.0) -> QPLayer:
    """The layer with parameters that no initialisation or training chose."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return layer


def q_of(n: int, *batch: int, seed: int = 1) -> Tensor:
    return torch.randn(*batch, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_by_default_q_arrives_and_the_rest_is_learned() -> None:
    layer = QPLayer(4, 3, 2, dtype=F64)
    assert {name: tuple(t.shape) for name, t in layer.named_parameters()} == {
        "L": (4, 4),
        "G": (3, 4),
        "h": (3,),
        "A": (2, 4),
        "b": (2,),
    }
    q = q_of(4, 5)
    blocks = layer.blocks(q=q)
    assert torch.equal(layer(q), solve_qp(**blocks).x)
    assert torch.equal(layer(q), layer(q=q))
    assert_optimal(layer.solve(q))


def test_a_layer_prints_what_it_is() -> None:
    assert repr(QPLayer(4)) == "QPLayer(n=4, m=0, p=0, inputs=(q), learned=(P), feasible=False, epsilon=0.0001)"
    layer = QPLayer(4, 3, inputs=("q", "h"), constants={"lb": 0, "G": torch.zeros(3, 4)}, learned=(), epsilon=0.1)
    assert repr(layer) == "QPLayer(n=4, m=3, p=0, inputs=(q, h), constants=(G, lb), feasible=False, epsilon=0.1)"
    assert repr(SoftmaxLayer(dim=1, temperature=0.5, upper=0.4)) == (
        "SoftmaxLayer(dim=1, temperature=0.5, learned=False, upper=0.4)"
    )
    assert repr(SoftmaxLayer(learned=True, upper=torch.ones(3))) == (
        "SoftmaxLayer(dim=-1, temperature=1, learned=True, upper=(3,))"
    )


def test_inputs_come_in_their_order_or_by_name() -> None:
    layer = QPLayer(3, 2, inputs=("h", "q"), dtype=F64)
    q, h = q_of(3, 5), torch.ones(5, 2, dtype=F64)
    expected = layer(h, q)
    assert torch.equal(layer(q=q, h=h), expected)
    assert torch.equal(layer(h, q=q), expected)
    for blocks in (layer.blocks(h, q), layer.blocks(h, q=q), layer.blocks(h=h, q=q)):
        assert torch.equal(solve_qp(**blocks).x, expected)
    assert set(layer.blocks()) == {"P", "G"}  # what the layer has of its own


def test_a_program_without_P_has_its_blocks_too() -> None:
    layer = QPLayer(2, inputs="q", constants={"lb": 0.0}, learned="ub", dtype=F64)
    q = q_of(2, 5)
    assert layer.blocks(q)["P"] is None
    assert torch.equal(solve_qp(**layer.blocks(q)).x, layer(q))


def test_a_warm_start_saves_iterations_and_changes_nothing_else() -> None:
    layer = scrambled(QPLayer(6, 8, feasible=True, dtype=F64), scale=1.0)
    q = q_of(6, 4)
    cold = layer.solve(q)
    warm = layer.solve(1.001 * q, warm_start=cold)
    expected = layer.solve(1.001 * q)
    assert warm.iterations.sum() < expected.iterations.sum()
    torch.testing.assert_close(warm.x, expected.x, rtol=0, atol=1e-8)  # both to 1e-9
    torch.testing.assert_close(layer(1.001 * q, warm_start=cold), warm.x, rtol=0, atol=0)


def test_every_block_may_arrive_and_a_linear_program_has_no_P() -> None:
    layer = QPLayer(2, 1, inputs=("q", "G", "h", "lb"), learned=(), dtype=F64)
    one = torch.ones(1, 2, dtype=F64)
    x = layer(torch.tensor([-1.0, -2.0], dtype=F64), one, one[:, 0], 0 * one[0])
    torch.testing.assert_close(x, torch.tensor([0.0, 1.0], dtype=F64))
    assert not list(layer.parameters())


def test_P_is_positive_definite_whatever_its_parameter() -> None:
    layer = scrambled(QPLayer(6, epsilon=1e-3, dtype=F64))
    P = layer.blocks(q=q_of(6))["P"]
    torch.testing.assert_close(P, P.mT, rtol=1e-14, atol=1e-14)
    assert torch.linalg.eigvalsh(P)[0] >= 1e-3 * (1 - 1e-9)
    with torch.no_grad():
        layer.get_parameter("L").zero_()
    assert torch.equal(layer.blocks(q=q_of(6))["P"], 1e-3 * torch.eye(6, dtype=F64))


def test_learned_bounds_never_cross() -> None:
    layer = scrambled(QPLayer(5, learned=("P", "lb", "ub"), dtype=F64), scale=10)
    blocks = layer.blocks(q=q_of(5))
    assert (blocks["lb"] < blocks["ub"]).all()
    assert_optimal(layer.solve(q_of(5, 7)))


FEASIBLE: dict[str, Callable[[], QPLayer]] = {
    "rows": lambda: QPLayer(5, 9, 2, feasible=True, dtype=F64),
    "learned bounds": lambda: QPLayer(5, 4, 2, learned=tuple("PGhAb") + ("lb", "ub"), feasible=True, dtype=F64),
    "nonnegative": lambda: QPLayer(5, 0, 3, constants={"lb": 0.0}, feasible=True, dtype=F64),
    "nonpositive": lambda: QPLayer(5, 3, 2, constants={"ub": torch.tensor(0.0, dtype=F64)}, feasible=True, dtype=F64),
    "box": lambda: QPLayer(
        3,
        4,
        1,
        constants={
            "lb": torch.tensor([-1.0, -torch.inf, 2.0], dtype=F64),
            "ub": torch.tensor([1.0, torch.inf, 2.0], dtype=F64),
        },
        feasible=True,
        dtype=F64,
    ),
    "matrices arrive": lambda: QPLayer(4, 3, 2, inputs=("q", "G", "A"), feasible=True, dtype=F64),
}


@pytest.mark.parametrize("kind", FEASIBLE)
def test_feasible_by_construction_whatever_the_parameters(kind: str) -> None:
    for seed in range(5):
        layer = scrambled(FEASIBLE[kind](), seed)
        given = [q_of(layer.n, 6, seed=seed)]
        if layer.inputs != ("q",):
            given += [torch.randn(6, rows, layer.n, dtype=F64) for rows in (layer.m, layer.p)]
        blocks = layer.blocks(**dict(zip(layer.inputs, given, strict=True)))
        z0 = layer.feasible_point()
        if "h" in blocks:
            assert ((blocks["G"] @ z0) < blocks["h"]).all()
        if "b" in blocks:
            torch.testing.assert_close((blocks["A"] @ z0).expand_as(blocks["b"]), blocks["b"])
        assert (z0 >= blocks.get("lb", z0)).all()
        assert (z0 <= blocks.get("ub", z0)).all()
        assert_optimal(layer.solve(*given))


def test_a_smooth_map_keeps_within_any_bounds() -> None:
    t = torch.linspace(-50, 50, 101, dtype=F64)
    inf = torch.tensor(torch.inf, dtype=F64)
    for lower, upper in [(-1.0, 2.0), (-1.0, inf), (-inf, 2.0), (-inf, inf), (3.0, 3.0)]:
        low, high = (torch.as_tensor(v, dtype=F64).expand(101) for v in (lower, upper))
        u = t.clone().requires_grad_()
        mapped = _between(u, low, high)
        assert (mapped >= low).all()
        assert (mapped <= high).all()
        assert (mapped.diff() >= 0).all()
        (slope,) = torch.autograd.grad(mapped.sum(), u)
        assert slope.isfinite().all()
        assert torch.equal(mapped, t) == (low.isinf() & high.isinf()).all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"inputs": ("c",)}, "'c' is no block of the problem, expected one of P, q, G"),
    ({"inputs": ("q", "q")}, "q is listed in inputs and in inputs, expected in one place"),
    ({"constants": {"q": torch.zeros(4)}}, "q is listed in inputs and in constants, expected in one place"),
    ({"learned": ("P", "q")}, "q is listed in inputs and in learned, expected in one place"),
    ({"inputs": (), "learned": ("P",)}, "q is neither input nor constant nor learned"),
    ({"n": 0}, "n, m, p are 0, 0, 0, expected integers n >= 1, m >= 0 and p >= 0"),
    ({"n": 2.5}, "n, m, p are 2.5, 0, 0, expected integers n >= 1"),
    ({"m": "3"}, "n, m, p are 4, '3', 0, expected integers n >= 1"),
    (
        {"m": 2, "constants": {"G": torch.zeros(2, 3)}},
        "constant G has shape (2, 3), expected (*batch, 2, 4): this layer has m = 2 and n = 4",
    ),
    ({"constants": {"lb": torch.zeros(3)}}, "constant lb has shape (3,), expected (*batch, 4): this layer has n = 4"),
    ({"constants": {"P": torch.zeros(4)}}, "constant P has shape (4,), expected (*batch, 4, 4): this layer has n = 4"),
    ({"constants": {"lb": "0"}}, "constant lb is a str, expected a torch.Tensor or a number"),
    ({"constants": {"P": 1.0}}, "constant P is a float, expected a torch.Tensor"),
    ({"constants": {"lb": torch.zeros(4, dtype=F64)}}, "constant lb has dtype torch.float64, expected torch.float32"),
    ({"constants": {"lb": torch.zeros(4).long()}}, "constant lb has dtype torch.int64, expected torch.float32"),
    ({"epsilon": -1e-4}, "epsilon is -0.0001, expected a finite number >= 0"),
    ({"m": 3, "learned": ("P", "G")}, "m is 3 but of G and h there is ['G']: expected both"),
    ({"inputs": ("q", "b")}, "p is 0 but there is ['b']: expected neither A nor b"),
    ({"feasible": True, "constants": {"lb": 0.0}}, "feasible=True needs a learned h, b, lb or ub, found none"),
    (
        {"m": 3, "p": 1, "feasible": True, "inputs": ("q", "h")},
        "feasible=True needs h to be learned, found it as an input",
    ),
    (
        {"m": 3, "p": 1, "feasible": True, "constants": {"b": torch.zeros(1)}},
        "feasible=True needs b to be learned, found it as a constant",
    ),
    ({"m": 3, "feasible": True, "inputs": ("q", "lb")}, "feasible=True needs lb to be learned, found it as an input"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_blocks_that_make_no_problem_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)):
        QPLayer(**{"n": 4, **changes})


def test_wrong_inputs_are_refused() -> None:
    layer = QPLayer(3, 2, inputs=("q", "h"), dtype=F64)
    q, h = q_of(3), torch.ones(2, dtype=F64)
    with pytest.raises(ProblemError, match="3 inputs are given, expected 2: q, h"):
        layer(q, h, h)
    with pytest.raises(ProblemError, match=r"h is a list, expected a torch.Tensor or None"):
        layer(q, [1.0, 1.0])
    with pytest.raises(ProblemError, match="input h is missing"):
        layer(q)
    with pytest.raises(ProblemError, match="input 'q' is unknown or given twice, expected q, h once each"):
        layer(q, h, q=q)
    with pytest.raises(ProblemError, match="input 'b' is unknown or given twice"):
        layer(q, b=h)
    with pytest.raises(ProblemError, match=re.escape("input h has shape (3,), expected (*batch, 2): this layer has m")):
        layer(q, q)
    with pytest.raises(
        ProblemError, match=re.escape("input q has shape (4, 2), expected (*batch, 3): this layer has n = 3")
    ):
        layer(q_of(2, 4), h)
    message = r"input {} has dtype torch.float{}, expected torch.float{}, the dtype of this layer"
    with pytest.raises(ProblemError, match=message.format("q", 32, 64)):
        layer(q.float(), h)
    with pytest.raises(ProblemError, match=message.format("h", 64, 32)):
        layer.float()(q.float(), h)
    with pytest.raises(ProblemError, match=message.format("q", 32, 64)):
        QPLayer(3, constants={"P": torch.eye(3, dtype=F64)})(q.float())


# ---- initialisation --------------------------------------------------------------------------------------------------


def test_initialisation_is_reproducible() -> None:
    torch.manual_seed(3)
    first = QPLayer(4, 3, 2)
    torch.manual_seed(3)
    second, third = QPLayer(4, 3, 2), QPLayer(4, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("G"), third.get_parameter("G"))
    before = torch.random.get_rng_state()
    own = [QPLayer(4, 3, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(own[0].parameters(), own[1].parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_initial_values() -> None:
    layer = QPLayer(4, 3, 2, learned=tuple("PGhAb") + ("lb", "ub"), feasible=True, dtype=F64)
    blocks = layer.blocks(q=q_of(4))
    one = torch.ones(4, dtype=F64)
    torch.testing.assert_close(blocks["P"], (1 + 1e-4) * torch.eye(4, dtype=F64))
    for name, value in (("h", one[:3]), ("b", 0 * one[:2]), ("lb", -one), ("ub", one)):
        torch.testing.assert_close(blocks[name], value)
    torch.testing.assert_close(
        QPLayer(4, 3, dtype=F64).blocks(q=q_of(4))["h"],
        one[:3],
    )


# ---- as modules ------------------------------------------------------------------------------------------------------


def a_layer(**options: Any) -> QPLayer:
    given: dict[str, Any] = {
        "constants": {"lb": -3.0},
        "feasible": True,
        "dtype": F64,
        "settings": Settings(max_iter=90),
    }
    return QPLayer(4, 5, 1, **{**given, **options})


def pickled(layer: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def reloaded(layer: nn.Module) -> nn.Module:
    other = a_layer()
    other.load_state_dict(layer.state_dict())
    return other


@pytest.mark.parametrize("travel", [copy.deepcopy, pickled, reloaded])
def test_a_copy_of_a_layer_is_the_layer(travel: Callable[[nn.Module], nn.Module]) -> None:
    layer = scrambled(a_layer(), scale=1)
    copied = travel(layer)
    q = q_of(4, 6)
    assert torch.equal(copied(q), layer(q))
    assert repr(copied) == repr(layer)
    copied(q).sum().backward()
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert all(parameter.grad is not None for parameter in copied.parameters())


def test_a_layer_changes_its_dtype() -> None:
    layer = a_layer().float()
    x = layer(q_of(4, 6).float())
    assert x.dtype is torch.float32
    torch.testing.assert_close(
        x, a_layer_with(layer)(q_of(4, 6)).float(), rtol=1e-4, atol=1e-4
    )  # float32 stops at 1e-5


def a_layer_with(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).double()


def test_settings_are_passed_on() -> None:
    assert a_layer().solve(q_of(4)).settings.max_iter == 90
    with pytest.raises(SettingsError, match=r"settings is 5, expected an optlayer\.Settings"):
        QPLayer(2, settings=5)  # type: ignore[arg-type]


def test_settings_may_be_given_by_name() -> None:
    layer = QPLayer(3, settings=Settings(max_iter=90), eps_abs=1e-4, dtype=F64)
    assert layer.settings == Settings(max_iter=90, eps_abs=1e-4)
    assert layer.solve(q_of(3)).settings.eps_abs == 1e-4
    assert QPLayer(3).settings is None
    with pytest.raises(SettingsError, match="'epsabs' is no setting"):
        QPLayer(3, epsabs=1e-4)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"lb": 0.0}, "lb is given by its name, expected constants={\"lb\": 0.0} or 'lb' among inputs or learned"),
        ({"A": torch.ones(2, 6)}, 'A is given by its name, expected constants={"A": ...} or'),
    ],
)
def test_a_block_given_as_a_setting_is_told_its_place(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match="^" + re.escape(message)):
        QPLayer(6, p=2, inputs=("q",), **block)


@pytest.mark.parametrize("lb", [1.0, torch.tensor([-1.0, 0.5])])
def test_constant_bounds_that_cross_are_refused(lb: float | Tensor) -> None:
    with pytest.raises(ProblemError, match=r"lb exceeds ub by up to [01](\.5)?, expected lb <= ub"):
        QPLayer(2, inputs=("q",), constants={"lb": lb, "ub": 0.0})


def test_constant_bounds_without_values_are_not_compared() -> None:
    assert QPLayer(2, inputs=("q",), constants={"lb": 0.0, "ub": torch.ones(2)}, device="meta").lb.is_meta
    with FakeTensorMode():
        QPLayer(2, inputs=("q",), constants={"lb": 0.0, "ub": torch.ones(2)})


def test_constants_are_taken_to_the_dtype_of_the_layer() -> None:
    layer = QPLayer(3, 1, constants={"G": torch.ones(1, 3), "ub": torch.tensor(2)}, dtype=F64)
    assert layer.get_buffer("G").dtype is layer.get_buffer("ub").dtype is F64
    assert_optimal(layer.solve(q_of(3, 5)))
    fixed = QPLayer(3, constants={"P": torch.eye(3, dtype=F64)})  # nothing is learned: only the input must agree
    torch.testing.assert_close(fixed(q_of(3)), -q_of(3))


def test_every_parameter_has_the_right_gradient() -> None:
    layer = scrambled(QPLayer(4, 3, 1, learned=tuple("PGhAb") + ("lb", "ub"), feasible=True, dtype=F64), scale=0.7)
    names, values = zip(*layer.named_parameters(), strict=True)
    q = q_of(4, 6)

    def function(*parameters: Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (q,))

    assert_gradients(function, values)


def test_an_ensemble_is_a_vmap() -> None:
    layers = [scrambled(a_layer(), seed, scale=1) for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)  # type: ignore[arg-type]
    q = q_of(4, 3, 6)
    x = torch.func.vmap(lambda p, b, q: torch.func.functional_call(layers[0], (p, b), (q,)))(parameters, buffers, q)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(x[i], layer(q[i]), rtol=1e-9, atol=1e-9)


def test_autocast_keeps_P_positive_definite() -> None:
    """In bfloat16, L L' + 1e-4 I would round to a matrix with negative eigenvalues of size 1e-2."""
    layer = scrambled(QPLayer(8, 4, feasible=True), scale=1)
    q = q_of(8, 5).float()
    expected = layer(q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(q), expected)
        assert_optimal(layer.solve(q.bfloat16()))


def test_a_layer_compiles() -> None:
    torch._dynamo.reset()
    layer = scrambled(a_layer(), scale=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    q = q_of(4, 6)
    torch.testing.assert_close(compiled(q), layer(q), rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(layer(q).square().sum(), layer.parameters())  # type: ignore[arg-type]
    found = torch.autograd.grad(compiled(q).square().sum(), layer.parameters())  # type: ignore[arg-type]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_steps_lower_the_loss() -> None:
    """The targets are minimisers of a hidden problem of the same shape."""
    torch.manual_seed(0)
    hidden = QPLayer(3, 4, feasible=True, dtype=F64)
    q = 2 * q_of(3, 40)
    target = hidden(q).detach()
    layer = QPLayer(3, 4, feasible=True, dtype=F64)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.03)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (layer(q) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert losses[1] < losses[0]


def _train(layer: nn.Module, q: Tensor, target: Tensor, steps: int = 3) -> nn.Module:
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        (layer(q) - target).square().mean().backward()
        optimiser.step()
    return layer


def _data() -> tuple[Tensor, Tensor]:
    return q_of(4, 8, seed=2), q_of(4, 8, seed=3)


def _worker(rank: int, folder: str) -> None:
    join_group(rank, folder)
    half = slice(4 * rank, 4 * rank + 4)
    q, target = _data()
    layer = DistributedDataParallel(scrambled(a_layer(), scale=1))
    _train(layer, q[half], target[half])
    torch.save(layer.module.state_dict(), f"{folder}/rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    spawn(_worker, tmp_path)
    alone = _train(scrambled(a_layer(), scale=1), *_data()).state_dict()
    for rank in range(2):
        together = torch.load(tmp_path / f"rank{rank}.pt")
        for name, t in alone.items():
            torch.testing.assert_close(together[name], t, rtol=1e-12, atol=1e-12)


# ---- softmax ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_softmax_equals_the_formula(dim: int, temperature: float) -> None:
    theta = q_of(5, 3)
    expected = torch.softmax(theta / temperature, dim)
    torch.testing.assert_close(SoftmaxLayer(dim, temperature=temperature)(theta), expected)
    learned = SoftmaxLayer(dim, temperature=temperature, learned=True, dtype=F64)
    torch.testing.assert_close(learned(theta), expected)


def test_a_learned_temperature_has_the_gradient_of_the_formula() -> None:
    theta, weight = q_of(5, 3), q_of(5, 3, seed=2)
    layer = SoftmaxLayer(temperature=0.7, learned=True, dtype=F64)
    (found,) = torch.autograd.grad((weight * layer(theta)).sum(), layer.log_temperature)
    t = layer.log_temperature.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((weight * torch.softmax(theta / t.exp(), -1)).sum(), t)
    torch.testing.assert_close(found, expected)


def test_a_learned_temperature_stays_positive_and_starts_again() -> None:
    layer = SoftmaxLayer(temperature=2.0, learned=True, dtype=F64)
    with torch.no_grad():
        layer.log_temperature.fill_(-5)
    assert layer.temperature > 0
    layer.reset_parameters()
    torch.testing.assert_close(layer.temperature, torch.tensor(2.0, dtype=F64))


def test_capped_probabilities() -> None:
    layer = SoftmaxLayer(upper=0.4)
    x = layer(torch.tensor([3.0, 0.0, 0.0], dtype=F64))
    torch.testing.assert_close(x, torch.tensor([0.4, 0.3, 0.3], dtype=F64))
    caps = SoftmaxLayer(upper=torch.tensor([0.4, 0.4, 0.4], dtype=F64))
    assert list(caps.state_dict()) == ["upper"]
    torch.testing.assert_close(copy.deepcopy(caps)(torch.tensor([3.0, 0.0, 0.0], dtype=F64)), x)


def test_a_cap_goes_where_the_layer_goes() -> None:
    layer = SoftmaxLayer(upper=torch.tensor([0.5, 0.4, 0.4]), dtype=F64)
    assert layer(q_of(3)).dtype is layer.get_buffer("upper").dtype is F64


@pytest.mark.parametrize(
    ("temperature", "kind"),
    [
        *((0.0, "float"), (-1, "int"), (float("nan"), "float"), (float("inf"), "float"), ("warm", "str")),
        *((True, "bool"), (torch.ones(1), "Tensor"), (torch.tensor(True), "Tensor")),
        (torch.ones((), requires_grad=True), "Tensor"),
    ],
)
def test_a_temperature_must_be_positive(temperature: Any, kind: str) -> None:
    with pytest.raises(ProblemError, match=rf"temperature is .* \({kind}\), expected a finite number > 0"):
        SoftmaxLayer(temperature=temperature)


@pytest.mark.parametrize("temperature", [0.5, Fraction(1, 2), torch.tensor(0.5)], ids=["float", "Real", "Tensor"])
def test_a_temperature_may_be_any_real_number(temperature: Any) -> None:
    assert SoftmaxLayer(temperature=temperature).temperature == 0.5
    assert isinstance(SoftmaxLayer(temperature=temperature).temperature, float)
