# SPDX-License-Identifier: Apache-2.0
"""Problems from files, solutions to files, and problems of any shapes as one batch.

Files state a quadratic program with two-sided rows,

    minimise  1/2 x'Px + q'x + r    subject to   l <= Cx <= u,   lb <= x <= ub,

and :func:`read` turns it into the standard form of this library: a row with l = u becomes a row of Ax = b, any other
row becomes a row Cx <= u of Gx <= h, a row -Cx <= -l, or both.  Numbers of magnitude 1e20 or more are infinite.

======================  =========================================================================  ================
suffix                  what the file holds                                                        needs
======================  =========================================================================  ================
``.npz``                P_row, P_col, P_val (all of P, or its lower and upper part), q, r;         numpy
                        A_row, A_col, A_val, l, u; lb, ub; name, n, m, f_opt (a known optimum)
``.mat``                Maros-Meszaros: P, q, r, A = [C; I], l, u (bounds are the rows of I)       scipy
``.mps``, ``.qps``      MPS with the sections QUADOBJ or QMATRIX, free or fixed                    highspy
======================  =========================================================================  ================

``pip install 'optlayer[io]'`` installs all three.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from .errors import ProblemError
from .problem import HUGE, Problem
from .solution import Rule, Solution
from .status import Status

INF = float("inf")
NAN = float("nan")
EQUAL = 1e-12  # rows with |u - l| at most this are equalities, as in the tools that write such files


@dataclass(frozen=True, eq=False)
class Instance:
    """One quadratic program as a file states it, in float64 on the CPU.

        minimise  1/2 x'Px + q'x    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

    Attributes:
        name: what the file calls the problem, else the name of the file.
        P, q: (n, n) and (n).
        G, h: (m, n) and (m): the rows with an upper limit, ``above``, then those with a lower one, negated, ``below``.
        A, b: (p, n) and (p): the rows whose limits are equal, ``equal``.
        lb, ub: (n), -inf and +inf where there is no bound.
        r: the constant of the objective.
        sense: 1 where the file minimises, -1 where it maximises and the blocks minimise the negative.
        optimum: the optimal objective that the file claims, NaN if it claims none.
        above, below, equal: (...) int64, for each row of G and A the row of the file that it came from.
        rows: how many rows the file has; rows without limits are no constraints.

    Example:
        >>> import torch
        >>> from optlayer import solve_qp
        >>> from optlayer.io import Instance
        >>> one = torch.ones(1, 2, dtype=torch.float64)
        >>> instance = Instance.from_rows("simplex", torch.eye(2), torch.zeros(2), one, l=[1.0], u=[1.0], lb=[0.0, 0.0])
        >>> instance
        Instance('simplex', n=2, m=0, p=1)
        >>> solve_qp(**instance.blocks).x.tolist()
        [0.5, 0.5]
    """

    name: str
    P: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor
    lb: Tensor
    ub: Tensor
    r: float
    sense: int
    optimum: float
    above: Tensor
    below: Tensor
    equal: Tensor
    rows: int

    @classmethod
    def from_rows(
        cls,
        name: str,
        P: Any,
        q: Any,
        C: Any = None,
        l: Any = None,
        u: Any = None,
        lb: Any = None,
        ub: Any = None,
        *,
        r: float = 0.0,
        sense: int = 1,
        optimum: float = NAN,
    ) -> "Instance":
        """From two-sided rows: arrays, sequences or tensors; a limit or bound that is ``None`` is infinite.

        Raises:
            ProblemError: the shapes do not fit; the message names the block.
        """
        q = _tensor(q).reshape(-1)
        n = q.shape[0]
        P = torch.zeros(n, n, dtype=torch.float64) if P is None else _tensor(P)
        C = torch.zeros(0, n, dtype=torch.float64) if C is None else _tensor(C)
        rows = C.shape[0]
        l, u = _limits(l, rows, -INF), _limits(u, rows, INF)
        lb, ub = _limits(lb, n, -INF), _limits(ub, n, INF)
        for block, t, shape in (
            ("P", P, (n, n)),
            ("A", C, (rows, n)),
            ("l", l, (rows,)),
            ("u", u, (rows,)),
            ("lb", lb, (n,)),
            ("ub", ub, (n,)),
        ):
            if t.shape != shape:
                raise ProblemError(f"{name}: {block} has shape {tuple(t.shape)}, expected {shape}")
        # Written so that a NaN stays a limit: the solver then says that the data are invalid.
        same = (u - l).abs() <= EQUAL
        equal = same.nonzero().reshape(-1)
        above = (~same & (u != INF)).nonzero().reshape(-1)
        below = (~same & (l != -INF)).nonzero().reshape(-1)
        G, h = torch.cat([C[above], -C[below]]), torch.cat([u[above], -l[below]])
        return cls(name, P, q, G, h, C[equal], u[equal], lb, ub, r, sense, optimum, above, below, equal, rows)

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.q.shape[0]

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return self.h.shape[0]

    @property
    def p(self) -> int:
        """Number of rows of A."""
        return self.b.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, m, p): instances of one shape stack into a batch without padding."""
        return self.n, self.m, self.p

    @property
    def blocks(self) -> dict[str, Any]:
        """The arguments of :func:`optlayer.solve_qp`; blocks that say nothing are ``None``."""
        return _without_idle(self.P, self.q, self.G, self.h, self.A, self.b, self.lb, self.ub)

    def objective(self, value: float) -> float:
        """The objective of the file where 1/2 x'Px + q'x of the blocks is ``value``."""
        return self.sense * value + self.r

    def row_multipliers(self, y: Tensor, z: Tensor) -> Tensor:
        """(rows): a multiplier per row of the file, > 0 where its upper limit is active, < 0 where its lower one is."""
        multipliers = y.new_zeros(self.rows)
        multipliers[self.equal] = y
        multipliers[self.above] = z[: len(self.above)]
        multipliers[self.below] -= z[len(self.above) :]
        return multipliers

    def __repr__(self) -> str:
        return f"Instance({self.name!r}, n={self.n}, m={self.m}, p={self.p})"


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


def stack(instances: Sequence[Instance]) -> dict[str, Any]:
    """The arguments of :func:`optlayer.solve_qp` that solve all instances as one batch, whatever their shapes.

    A smaller instance is filled up with variables fixed at zero, rows 0'x <= inf and rows 0'x = 0, which change
    nothing.  :func:`unstack` takes the solution of each instance out again.

    Example:
        >>> from optlayer import solve_qp
        >>> from optlayer.hock_schittkowski import problems
        >>> from optlayer.io import stack
        >>> batch = problems("HS21", "HS35", "HS76")
        >>> solve_qp(**stack(batch)).x.shape
        torch.Size([3, 4])
    """
    if not instances:
        raise ProblemError("there is no instance to stack, expected at least one")
    n, m, p = (max(i.shape[k] for i in instances) for k in range(3))
    shapes = {"P": (n, n), "q": (n,), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,), "lb": (n,), "ub": (n,)}
    blocks = []
    for name, shape in shapes.items():
        full = torch.full((len(instances), *shape), INF if name == "h" else 0.0, dtype=torch.float64)
        for row, instance in zip(full, instances, strict=True):
            t: Tensor = getattr(instance, name)
            row[tuple(slice(size) for size in t.shape)] = t
        blocks.append(full)
    return _without_idle(*blocks)


def unstack(solution: Solution, instances: Sequence[Instance]) -> list[Solution]:
    """The solution of each instance that :func:`stack` put into the batch, in its own shape.

    All of its values are those of the instance; only ``kkt`` and ``jacobian`` stay with the solution of the batch, whose
    factorisation they use, and raise :class:`optlayer.ProblemError` here.
    """
    alone = []
    for i, instance in enumerate(instances):
        cut = {"n": instance.n, "m": instance.m, "p": instance.p}
        parts = {k: getattr(solution, k)[i, : cut[size]] for k, size in SIZES.items()}
        ray = solution.certificate
        certificate = type(ray)(*(getattr(ray, k)[i, : cut[SIZES[k]]] for k in ray._fields))
        counts = {k: getattr(solution, k)[i] for k in ("status", "iterations", "weakly_active")}
        problem = Problem(**instance.blocks)
        alone.append(replace(solution, **parts, **counts, certificate=certificate, problem=problem, rule=BATCH_ONLY))
    return alone


def _refuse(*_: Any) -> NoReturn:
    raise ProblemError("the factorisation is that of the batch: ask the solution of the batch for kkt and jacobian")


BATCH_ONLY = Rule(_refuse, _refuse)
SIZES = {"x": "n", "y": "p", "z": "m", "z_box": "n", "s": "m"}


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
    P, A = (_tensor(t.todense() if hasattr(t, "todense") else t) for t in (P, A))
    q, l, u = (_tensor(t).reshape(-1) for t in (q, l, u))
    n, rows = q.shape[0], A.shape[0]
    lb = ub = None
    if rows >= n and torch.equal(A[rows - n :], torch.eye(n, dtype=A.dtype)):
        rows -= n
        lb, ub = l[rows:], u[rows:]
    r = float(_tensor(data["r"]).reshape(-1)[0]) if "r" in data else 0.0
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
        sense * _tensor(lp.col_cost_),
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


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _limits(values: Any, size: int, default: float) -> Tensor:
    t = torch.full((size,), default, dtype=torch.float64) if values is None else _tensor(values).reshape(-1)
    t = torch.where(t >= HUGE, INF, t)
    return torch.where(t <= -HUGE, -INF, t)


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
    return major, torch.as_tensor(matrix.index_[:count]).long(), _tensor(matrix.value_[:count])


def _without_idle(
    P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor, lb: Tensor, ub: Tensor
) -> dict[str, Any]:
    rows, equalities = h.shape[-1] > 0, b.shape[-1] > 0
    return {
        "P": P if bool((P != 0).any()) else None,
        "q": q,
        "G": G if rows else None,
        "h": h if rows else None,
        "A": A if equalities else None,
        "b": b if equalities else None,
        "lb": lb if bool((lb != -INF).any()) else None,
        "ub": ub if bool((ub != INF).any()) else None,
    }
