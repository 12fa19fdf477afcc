# SPDX-License-Identifier: Apache-2.0
"""Exported programs: one operator in the graph, a dynamic batch, and derivatives that are right or refused."""

import io

import dense_engine
import pytest
import torch
from processes import needs_compiler
from regular import OPTIONS, close, loss, outputs, regular, tracked
from torch.autograd import forward_ad
from torch.export import Dim, export

from optlayer.derivative import adjoint, solve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Layer(torch.nn.Module):
    """Two shared matrices as parameters, everything else as inputs."""

    def __init__(self, program):
        super().__init__()
        self.P, self.G = (torch.nn.Parameter(t.clone()) for t in (program.P, program.G))

    def forward(self, q, h, A, b, lb, ub):
        return outputs(self.P, q, self.G, h, A, b, lb, ub)


def given(program):
    return tuple(program[i] for i in (1, 3, 4, 5, 6, 7))


@pytest.fixture(autouse=True)
def calls():
    with dense_engine.installed() as counted:
        yield counted


@pytest.fixture(scope="module")
def program():
    return regular(3, shared=("P", "G"))[0]


@pytest.fixture(scope="module", params=[True, False], ids=["strict", "non-strict"])
def exported(request, program):
    shapes = [{0: Dim("batch", min=2, max=64)}] * 6
    with dense_engine.installed():
        return export(Layer(program), given(program), dynamic_shapes=shapes, strict=request.param)


def test_the_graph_holds_one_operator(exported):
    called = [node.target for node in exported.graph.nodes if "optlayer" in str(node.target)]
    assert called == [torch.ops.optlayer.qp.default]


@pytest.mark.parametrize("batch", [2, 5])
def test_any_batch_size(exported, program, batch):
    other, _ = regular(batch, seed=7, shared=("P", "G"))
    other = other._replace(P=program.P, G=program.G, h=other.h + 9, lb=other.lb - 9, ub=other.ub + 9)
    close(exported.module()(*given(other)), outputs(*other))


def test_saved_and_loaded(exported, program):
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    close(torch.export.load(file).module()(*given(program)), outputs(*program))


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_ahead_of_time(program, tmp_path):
    with torch.no_grad():
        graph = export(Layer(program), given(program))
        package = torch._inductor.aoti_compile_and_package(graph, package_path=str(tmp_path / "layer.pt2"))
    close(torch._inductor.aoti_load_package(package)(*given(program)), outputs(*program))


def test_backward_and_double_backward(exported, program, calls):
    module, q = exported.module(), program.q.clone().requires_grad_()
    arguments = (q, *given(program)[1:])
    P, G = (p.detach().requires_grad_() for p in (program.P, program.G))
    with torch.no_grad():
        expected_out = outputs(*program)
    out = module(*arguments)
    close(out, expected_out)
    mine = torch.autograd.grad(sum(t.pow(3).sum() for t in out), (q, module.P, module.G), create_graph=True)
    plain = outputs(P, q, G, *program[3:])
    theirs = torch.autograd.grad(sum(t.pow(3).sum() for t in plain), (q, P, G), create_graph=True)
    close(mine, theirs)
    close(
        torch.autograd.grad(sum(g.pow(2).sum() for g in mine), (q, module.P, module.G)),
        torch.autograd.grad(sum(g.pow(2).sum() for g in theirs), (q, P, G)),
    )


def test_vmap_is_one_call(exported, program, calls):
    module = exported.module()
    stacked = [torch.stack([t, t]) for t in given(program)]
    with torch.no_grad():
        calls.update(qp=0)
        mapped = torch.func.vmap(module)(*stacked)
    assert calls["qp"] == 1
    close([t[1] for t in mapped], outputs(*program))


def test_torch_func_gradients_of_an_exported_program_are_refused(exported, program):
    module = exported.module()
    with pytest.raises(NotImplementedError):
        torch.func.grad(lambda q: module(q, *given(program)[1:])[0].sum())(program.q)


def test_forward_mode_through_an_exported_program_is_refused(exported, program):
    module = exported.module()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"call torch.func.jvp inside"):
        module(forward_ad.make_dual(program.q, program.q), *given(program)[1:])


def test_an_exported_element_gradient_differentiates_again(program):
    """Its graph calls kkt_solve, whose own derivative is then asked for."""

    class Gradient(torch.nn.Module):
        def forward(self, *blocks):
            raw = solve(*blocks, None, OPTIONS)
            return adjoint(*blocks, raw, g_x=torch.ones_like(raw.x), wanted=("P", "q", "G"))

    whole, _ = regular(2)
    graph = export(Gradient(), tuple(whole), strict=False)
    called = [node.target for node in graph.graph.nodes if "optlayer" in str(node.target)]
    assert called == [torch.ops.optlayer.qp.default, torch.ops.optlayer.kkt_solve.default]
    exported, plain = tracked(whole), tracked(whole)
    mine, theirs = graph.module()(*exported), Gradient()(*plain)
    close(mine, theirs)
    close(
        torch.autograd.grad(sum(g.pow(2).sum() for g in mine.values()), exported),
        torch.autograd.grad(sum(g.pow(2).sum() for g in theirs.values()), plain),
    )


def test_exporting_a_transform_is_refused():
    """torch cannot trace a Function under torch.func into an exported graph, and says so."""

    class Gradient(torch.nn.Module):
        def forward(self, *blocks):
            return torch.func.grad(loss, argnums=1)(*blocks)

    with pytest.raises(Exception, match=r"not registered"):
        export(Gradient(), tuple(regular(2)[0]), strict=False)
