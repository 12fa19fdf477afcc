# SPDX-License-Identifier: Apache-2.0
"""Problems from files and solutions to files.

======================  =========================================================================  ================
suffix                  what the file holds                                                        needs
======================  =========================================================================  ================
``.npz``, dense         P, q, G, h, A, b, lb, ub as in :func:`optlayer.solve_qp`, without batch    numpy
``.npz``, coordinates   P_row, P_col, P_val, q; A_row, A_col, A_val, l, u; lb, ub; n, m            numpy
``.mat``                Maros-Meszaros: P, q, r, A = [C; I], l, u (bounds are the rows of I)       scipy
``.mps``, ``.qps``      MPS with the sections QUADOBJ or QMATRIX, free or fixed                    highspy
======================  =========================================================================  ================

An ``.npz`` file holds q and whichever other entries the problem needs, all of one form; any other entry is refused.
The coordinate form is min 1/2 x'Px + q'x + r with l <= Ax <= u and lb <= x <= ub; its matrices are row numbers, column
numbers (from 0) and values, and values at one place add up.  It must list every entry of P, both triangles.  In either
form lb and ub may be single numbers, and there may be name, r (the constant of the objective) and f_opt (a known
optimum).

``pip install 'optlayer[io]'`` installs all three.  :mod:`optlayer.instance` says how rows become the standard form.
"""

import re
import shutil
import tempfile
import zipfile
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
from .status import ITERATES, Status

DENSE = ("P", "G", "h", "A", "b")
COORDINATES = ("P_row", "P_col", "P_val", "A_row", "A_col", "A_val", "l", "u", "n", "m")
EITHER = ("q", "lb", "ub", "r", "f_opt", "name")


def read(path: str | Path) -> Instance:
    """The problem in a file; the suffix says how it is written, see :mod:`optlayer.io`.

    Raises:
        ProblemError: the suffix is unknown, or the content is no quadratic program; the message names the file.
        FileNotFoundError, IsADirectoryError: there is no such file.
        ImportError: the package that reads such files is not installed; the message says how to get it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, expected a file")
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
    problem as certificate_x, certificate_y, certificate_z, certificate_z_box.  Without a solution or a last iterate
    near one, all but these and the iterations is NaN.
    """
    np = _need("numpy", "write .npz files")
    residuals = solution.residuals()
    status = Status(int(solution.status))
    record: dict[str, Any] = {
        "name": instance.name,
        "status": status.name,
        "objective": instance.objective(float(residuals.objective)),
        "primal_residual": float(residuals.primal),
        "dual_residual": float(residuals.dual),
        "duality_gap": float(residuals.gap),
        "iterations": int(solution.iterations),
        "row_multipliers": instance.row_multipliers(solution.y, solution.z).detach().numpy(),
    }
    record |= {k: getattr(solution, k).detach().numpy() for k in ("x", "y", "z", "z_box", "s")}
    if status not in ITERATES:
        record |= {k: np.full_like(v, np.nan) for k, v in record.items() if isinstance(v, (float, np.ndarray))}
    record |= {f"certificate_{k}": v.detach().numpy() for k, v in solution.certificate._asdict().items()}
    np.savez_compressed(path, **record)


def _read_npz(path: Path) -> Instance:
    data = _entries(path)
    _check_entries(path, data)
    name = str(data["name"]) if "name" in data else path.stem
    r, optimum = (_vector(path, data, key, default) for key, default in (("r", 0.0), ("f_opt", NAN)))
    r, optimum = float(r), float(optimum)
    q, lb, ub = (_vector(path, data, key) for key in ("q", "lb", "ub"))
    if not q.numel():
        raise ProblemError(f"{path}: q has no entries, expected one for each variable")
    try:
        if not set(DENSE).isdisjoint(data):
            P, G, A = (data.get(key) for key in ("P", "G", "A"))
            h, b = (_vector(path, data, key) for key in ("h", "b"))
            return Instance.from_blocks(name, P, q, G, h, A, b, lb, ub, r=r, optimum=optimum)
        l, u = (_vector(path, data, key) for key in ("l", "u"))
        if l is None and u is None and not {"A_row", "A_col", "A_val"}.isdisjoint(data):
            raise ProblemError("the matrix A is given without l and u, expected at least one of them")
        n = q.numel()
        rows = int(data["m"]) if "m" in data else next((t.numel() for t in (l, u) if t is not None), 0)
        if int(data.get("n", n)) != n:
            raise ProblemError(f"n is {int(data['n'])} but q has {n} entries: expected as many")
        P, C = _coordinates(path, data, "P", (n, n)), _coordinates(path, data, "A", (rows, n))
        if P is not None:
            _check_triangles(path, P)
        return Instance.from_rows(name, P, q, C, l, u, lb, ub, r=r, optimum=optimum)
    except ProblemError as error:
        raise ProblemError(f"{path}: {str(error).removeprefix(f'{name}: ').removeprefix(f'{path}: ')}") from None


def _entries(path: Path) -> dict[str, Any]:
    """The arrays of an ``.npz`` file by name; all but the name of the problem hold numbers."""
    np = _need("numpy", "read .npz files")
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ProblemError(f"{path}: not an .npz file of numbers ({error})") from error
    for key, array in data.items():
        if key != "name" and array.dtype.kind not in "buif":
            raise ProblemError(f"{path}: {key} has dtype {array.dtype}, expected real numbers")
    return data


def _check_entries(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse what is of no form, and the mixture of two."""
    forms = f"the dense form has {', '.join(DENSE)}, the coordinate form {', '.join(COORDINATES)}, "
    forms += f"either {', '.join(EITHER)}"
    dense, coordinates, either = ([key for key in data if key in keys] for keys in (DENSE, COORDINATES, EITHER))
    if unknown := [key for key in data if key not in {*dense, *coordinates, *either}]:
        raise ProblemError(f"{path}: holds {', '.join(unknown)}, which no form knows: {forms}")
    if dense and coordinates:
        raise ProblemError(
            f"{path}: holds {', '.join(dense)} of the dense form and {', '.join(coordinates)} of the coordinate form, "
            f"expected entries of one: {forms}"
        )
    if "q" not in data:
        raise ProblemError(f"{path}: holds {', '.join(data) or 'nothing'}, expected q and the blocks of a problem")


def _check_triangles(path: Path, P: Tensor) -> None:
    above, below = bool(P.triu(1).any()), bool(P.tril(-1).any())
    if above is not below:
        triangle = "upper" if above else "lower"
        raise ProblemError(
            f"{path}: P_row, P_col, P_val hold the {triangle} triangle of P only, "
            "expected every entry of P, both triangles"
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
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        highs.setOptionValue("log_to_console", False)
        highs.setOptionValue("log_file", str(log))
        # HiGHS goes by the suffix, and knows only .mps.
        copy = shutil.copyfile(path, Path(folder) / "problem.mps")
        if highs.readModel(str(copy)) == highspy.HighsStatus.kError:
            raise ProblemError(f"{path}: HiGHS cannot read it as an MPS file")
        highs.setOptionValue("log_file", "")  # closes it
        # Entries for rows and columns that do not exist it leaves out with a warning: another problem would be solved.
        ignored = re.search(r"^WARNING: +(.*(?:ignored|not defined).*)$", log.read_text(errors="replace"), re.MULTILINE)
    if ignored:
        raise ProblemError(f"{path}: HiGHS says: {ignored[1]}")
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


def _vector(path: Path, data: Mapping[str, Any], key: str, default: float | None = None) -> Any:
    """An entry that is a vector, as a column or a row too, or one number; what is absent is ``default``."""
    if key not in data:
        return default
    t = as_float64(data[key])
    if key in ("r", "f_opt"):
        if t.numel() != 1:
            raise ProblemError(f"{path}: {key} has shape {tuple(t.shape)}, expected one number")
        return t.reshape(())
    if t.ndim and t.numel() != max(t.shape):
        raise ProblemError(f"{path}: {key} has shape {tuple(t.shape)}, expected one vector: a file holds one problem")
    return t.reshape(-1) if t.ndim else t


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
