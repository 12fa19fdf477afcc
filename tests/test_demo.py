# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optlayer import demo

pytest.importorskip("sklearn")


def test_the_lasso_satisfies_its_optimality_conditions() -> None:
    lasso = demo.Lasso.diabetes()
    lam = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    w = lasso.weights(lam)
    gradient = (w @ lasso.Z.T - lasso.t) @ lasso.Z / len(lasso.Z)
    # The subgradient: -lam sign(w) on the support, at most lam in magnitude elsewhere.  1e-9 is the solver's accuracy.
    for g, v, bound in zip(gradient, w, lam, strict=True):
        on = v.abs() > 1e-8
        torch.testing.assert_close(g[on], -bound * v[on].sign(), rtol=0, atol=1e-8)
        assert (g[~on].abs() <= bound + 1e-8).all()


def test_the_hypergradient_through_the_layer_is_the_closed_form() -> None:
    lasso = demo.Lasso.diabetes()
    lam = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    w = lasso.weights(lam)
    (through,) = torch.autograd.grad(lasso.validation_loss(w), lam)
    assert int((w.abs() > 1e-9).sum()) == 4
    assert float(through) == pytest.approx(lasso.hypergradient(w.detach()), rel=1e-9)
    assert float(through) == pytest.approx(0.203709895157, abs=1e-9)  # scikit-learn's own data, known beforehand


def test_the_classics_stand_in_for_absent_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTLAYER_TEST_DATA", str(tmp_path))
    calls, what = demo.control_problems()
    assert len(calls) == 1 and len(calls[0]) == 10
    assert "Hock and Schittkowski" in what


def test_the_classics_stand_in_where_no_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTLAYER_TEST_DATA", raising=False)
    assert "Hock and Schittkowski" in demo.control_problems()[1]


def test_the_demo_without_scikit_learn_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for part in ("derivatives", "batch_of_problems"):
        monkeypatch.setattr(demo, part, lambda: ("part", True))
    assert demo.run(tmp_path) == 1
    assert "install scikit-learn: pip install 'optlayer[examples]'" in capsys.readouterr().out.splitlines()[-1]


def test_the_demo_ends_with_what_it_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTLAYER_TEST_DATA", str(tmp_path))
    monkeypatch.setattr(demo, "derivatives", lambda: ("derivatives", True))  # test_verify.py tests it
    assert demo.run(tmp_path) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Verified: derivatives; 10 of 10 problems of Hock and Schittkowski")
    assert (tmp_path / "lasso.png").stat().st_size > 10_000


def test_the_demo_fails_when_a_check_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTLAYER_TEST_DATA", str(tmp_path))
    rows = [SimpleNamespace(passed=True), SimpleNamespace(passed=False)]
    monkeypatch.setattr(demo, "verify", SimpleNamespace(run=lambda: rows, text=lambda rows: "table"))
    monkeypatch.setattr(demo, "learn_the_penalty", lambda output: ("lasso", True))
    assert demo.run(tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("NOT verified: 1 of 2 derivatives")
