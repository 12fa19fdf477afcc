# SPDX-License-Identifier: Apache-2.0
"""Problems from files and solutions to files.

======================  =========================================================================  ================
suffix                  what the file holds                                                        needs
======================  =========================================================================  ================
``.npz``                P_row, P_col, P_val (all of P), q, r; A_row, A_col, A_val, l, u; lb, ub;   numpy
                        name, n, m, f_opt (a known optimum)
``.mat``                Maros-Meszaros: P, q, r, A = [C; I], l, u (bounds are the rows of I)       scipy
``.mps``, ``.qps``      MPS with the sections QUADOBJ or QMATRIX, free or fixed                    highspy
======================  =========================================================================  ================

``pip install 'optlayer[io]'`` installs all three.  :mod:`optlayer.instance` says how rows become the standard form.
"""

import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .errors import ProblemError
from .instance import NAN, Instance, as_float64
from .solution import Solution
from .status import Status


def read(path: str | Path) -> Instance:
    """The problem in a file; the suffix says how it is written, see :mod:`optlayer.io`.

    Raises:
        ProblemError: the suffix is unknown, or the content is no quadratic program; the message names the file.
        ImportError: the package that reads such files is not installed; the message says how to get it.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ProblemError(f"{path}: suffix {path.suffix!r}, expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return reader(path)


def write(path: str | Path, instance: Instance, solution: Solution) -> None:
    """Write the solution of one instance, without batch dimensions, to an ``.npz`` file.

    It holds name, status (its name), objective (of the file), x, y, z, z_box, s, row_multipliers (one per row of the
    problem's file), primal_residual, dual_residual, duality_gap, iterations, and the certificate of an infeasible
    problem as certificate_x, certificate_y, certificate_z, certificate_z_box.
    """
    np = _need("numpy", "write .npz files")
    residuals = solution.residuals()
    record: dict[str, Any] = {
        "name": instance.name,
        "status": Status(int(solution.status)).name,
        "objective": instance.objective(float(residuals.objective)),
        "primal_residual": float(residuals.primal),
        "dual_residual": float(residuals.dual),
        "duality_gap": float(residuals.gap),
        "iterations": int(solution.iterations),
        "row_multipliers": instance.row_multipliers(solution.y, solution.z).detach().numpy(),
    }
    record |= {k: getattr(solution, k).detach().numpy() for k in ("x", "y", "z", "z_box", "s")}
    record |= {f"certificate_{k}": v.detach().numpy() for k, v in solution.certificate._asdict().items()}
    np.savez_compressed(path, **record)


def _read_npz(path: Path) -> Instance:
    np = _need("numpy", "read .npz files")
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    if "q" not in data:
        raise ProblemError(
            f"{path}: holds {', '.join(sorted(data)) or 'nothing'}, expected q and the blocks of a problem"
        )
    n = data["q"].size
    rows = int(data["m"]) if "m" in data else (data["l"].size if "l" in data else 0)
    return Instance.from_rows(
        str(data["name"]) if "name" in data else path.stem,
        _coordinates(path, data, "P", (n, n)),
        data["q"],
        _coordinates(path, data, "A", (rows, n)),
        *(data.get(k) for k in ("l", "u", "lb", "ub")),
        r=float(data.get("r", 0.0)),
        optimum=float(data.get("f_opt", NAN)),
    )


def _read_mat(path: Path) -> Instance:
    scipy_io = _need("scipy.io", "read .mat files")
    try:
        data = scipy_io.loadmat(path)
        P, q, A, l, u = (data[k] for k in ("P", "q", "A", "l", "u"))
    except KeyError as missing:
        found = ", ".join(sorted(k for k in data if not k.startswith("__")))
        raise ProblemError(f"{path}: has no {missing}; holds {found}, expected P, q, A, l, u") from None
    except (ValueError, NotImplementedError, scipy_io.matlab.MatReadError) as error:
        raise ProblemError(f"{path}: {error}") from error
    P, A = (as_float64(t.todense() if hasattr(t, "todense") else t) for t in (P, A))
    q, l, u = (as_float64(t).reshape(-1) for t in (q, l, u))
    n, rows = q.shape[0], A.shape[0]
    lb = ub = None
    if rows >= n and torch.equal(A[rows - n :], torch.eye(n, dtype=A.dtype)):
        rows -= n
        lb, ub = l[rows:], u[rows:]
    r = float(as_float64(data["r"]).reshape(-1)[0]) if "r" in data else 0.0
    return Instance.from_rows(path.stem, P, q, A[:rows], l[:rows], u[:rows], lb, ub, r=r)


def _read_mps(path: Path) -> Instance:
    highspy = _need("highspy", f"read {path.suffix} files")
    highs = highspy.Highs()
    highs.silent()
    with tempfile.TemporaryDirectory() as folder:
        # HiGHS goes by the suffix, and knows only .mps.
        copy = shutil.copyfile(path, Path(folder) / "problem.mps")
        if highs.readModel(str(copy)) == highspy.HighsStatus.kError:
            raise ProblemError(f"{path}: HiGHS cannot read it as an MPS file")
    model = highs.getModel()
    lp, hessian = model.lp_, model.hessian_
    continuous = highspy.HighsVarType.kContinuous
    if any(kind != continuous for kind in lp.integrality_):
        raise ProblemError(f"{path}: has integer or semi-continuous variables, expected continuous ones")
    n, rows = lp.num_col_, lp.num_row_
    major, minor, values = _compressed(lp.a_matrix_)
    columns = lp.a_matrix_.format_ == highspy.MatrixFormat.kColwise
    C = _dense((minor, major) if columns else (major, minor), values, (rows, n))
    P = torch.zeros(n, n, dtype=torch.float64)
    if hessian.dim_:
        major, minor, values = _compressed(hessian)
        P = _dense((minor, major), values, (n, n))
        if hessian.format_ == highspy.HessianFormat.kTriangular:
            P = P + P.tril(-1).T
    sense = -1 if lp.sense_ == highspy.ObjSense.kMaximize else 1
    return Instance.from_rows(
        path.stem,  # HiGHS keeps no name from the file
        sense * P,
        sense * as_float64(lp.col_cost_),
        C,
        lp.row_lower_,
        lp.row_upper_,
        lp.col_lower_,
        lp.col_upper_,
        r=lp.offset_,
        sense=sense,
    )


READERS = {".npz": _read_npz, ".mat": _read_mat, ".mps": _read_mps, ".qps": _read_mps}


def _need(module: str, purpose: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"to {purpose}, install {package}: pip install 'optlayer[io]'", name=package) from error


def _dense(at: tuple[Tensor, Tensor], values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64).index_put_(at, values, accumulate=True)


def _coordinates(path: Path, data: Mapping[str, Any], block: str, shape: tuple[int, int]) -> Tensor | None:
    """A block from its row numbers, column numbers and values; values at the same place add up."""
    keys = [f"{block}_{part}" for part in ("row", "col", "val")]
    missing = [key for key in keys if key not in data]
    if len(missing) == 3:
        return None
    if missing:
        raise ProblemError(f"{path}: has no {' and no '.join(missing)}, expected {', '.join(keys)}")
    row, col, val = (torch.as_tensor(data[key]).reshape(-1) for key in keys)
    if not len(row) == len(col) == len(val):
        raise ProblemError(
            f"{path}: {', '.join(keys)} have {len(row)}, {len(col)}, {len(val)} entries, expected as many"
        )
    row, col = row.long(), col.long()
    for key, places, size in ((keys[0], row, shape[0]), (keys[1], col, shape[1])):
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < size:
            raise ProblemError(f"{path}: {key} has entries outside 0..{size - 1}")
    return _dense((row, col), val.double(), shape)


def _compressed(matrix: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Major index, minor index and value of each entry of a compressed (CSC or CSR) matrix of HiGHS."""
    start = torch.as_tensor(matrix.start_).long()
    count = int(start[-1])
    major = torch.repeat_interleave(torch.arange(len(start) - 1), start.diff())
    return major, torch.as_tensor(matrix.index_[:count]).long(), as_float64(matrix.value_[:count])
