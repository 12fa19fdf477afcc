# SPDX-License-Identifier: Apache-2.0
"""How to solve: every option of the library, its default and its range, in one place."""

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch

from .errors import SettingsError

BACKENDS = ("auto", "native", "reference")
FORMULATIONS = ("auto", "split", "range")
ON_FAILURE = ("nan", "raise", "warn", "ignore")
FILLED = ("nan", "warn")  # these two fill what failed with NaN
FACTORISATION = ("keep", "recompute")
DEFAULT_EPS = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Settings:
    """How to solve a quadratic program.  Immutable; every field is checked when the record is made.

    A batch element is solved when, on the data as given, its primal residual, dual residual and duality gap are each at
    most ``eps_abs + eps_rel * scale``, with the scales of :func:`optlayer.residuals.residuals`.

    Attributes:
        eps_abs: absolute accuracy, >= 0; ``None``: 1e-9 for float64, 1e-5 for float32.
        eps_rel: accuracy relative to the scales of the problem, >= 0; ``None`` as for ``eps_abs``.  Not both may be 0.
        max_iter: limit on the interior point iterations of each batch element, >= 1.
        backend: the engine: ``"native"`` (compiled, for the CPU; a call raises where there is none: see
            ``python -m optlayer info``), ``"reference"`` (plain torch, any device) or ``"auto"`` (the fastest one that
            fits).
        formulation: the form of the KKT system: ``"split"`` (any problem), ``"range"`` (well conditioned positive
            definite P without bounds; cheaper) or ``"auto"`` (``"range"`` where it is as accurate, else ``"split"``).
        on_failure: what to do about elements that are not solved: ``"nan"`` (fill them with NaN), ``"raise"`` (a
            :class:`optlayer.SolverError` that names element and status), ``"warn"`` (NaN as under ``"nan"``, and a
            ``RuntimeWarning`` that names them) or ``"ignore"`` (return the best iterate).  ``"raise"`` and ``"warn"``
            make the host wait for the device.
        factorisation: what backward solves with: ``"keep"`` (the factors that the solve leaves behind, n^2 +
            min(m + p, 2n)^2 numbers for each element; quickest) or ``"recompute"`` (they are made anew from a few
            vectors when backward comes; for batches whose factors would not fit into memory).

    Raises:
        SettingsError: a name is no field, a field has a wrong type, or a value is out of its range; the message names
            the field, what was found and what was expected.

    Example:
        >>> import torch
        >>> from optlayer import Settings
        >>> Settings(eps_abs=1e-6).resolve(torch.float64).eps_rel
        1e-09
        >>> Settings(max_iter=50).override(on_failure="raise").max_iter
        50
    """

    eps_abs: float | None = None
    eps_rel: float | None = None
    max_iter: int = 200
    backend: Literal["auto", "native", "reference"] = "auto"
    formulation: Literal["auto", "split", "range"] = "auto"
    on_failure: Literal["nan", "raise", "warn", "ignore"] = "nan"
    factorisation: Literal["keep", "recompute"] = "keep"

    def __new__(cls, *_: Any, **given: Any) -> "Settings":
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise _unknown(name)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        _check_eps("eps_abs", self.eps_abs)
        _check_eps("eps_rel", self.eps_rel)
        if self.eps_abs == 0 and self.eps_rel == 0:
            raise SettingsError("eps_abs and eps_rel are both 0, which no solver can reach: make one of them positive")
        if not isinstance(self.max_iter, int) or isinstance(self.max_iter, bool) or self.max_iter < 1:
            raise SettingsError(f"max_iter is {self.max_iter!r}, expected an integer >= 1")
        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("formulation", self.formulation, FORMULATIONS)
        _check_choice("on_failure", self.on_failure, ON_FAILURE)
        _check_choice("factorisation", self.factorisation, FACTORISATION)

    def override(self, **overrides: Any) -> "Settings":
        """These settings with some fields replaced; an unknown name raises :class:`SettingsError`."""
        for name in overrides:
            if name not in NAMES:
                raise _unknown(name)
        return replace(self, **overrides) if overrides else self

    def resolve(self, dtype: torch.dtype) -> "Settings":
        """These settings with the accuracies that ``None`` stands for in ``dtype``, float64 or float32."""
        if self.eps_abs is not None and self.eps_rel is not None:
            return self
        if dtype not in DEFAULT_EPS:
            raise SettingsError(f"dtype is {dtype}, expected torch.float64 or torch.float32")
        eps = DEFAULT_EPS[dtype]
        return replace(
            self,
            eps_abs=eps if self.eps_abs is None else self.eps_abs,
            eps_rel=eps if self.eps_rel is None else self.eps_rel,
        )


NAMES = tuple(field.name for field in fields(Settings))


def _unknown(name: str) -> SettingsError:
    close = get_close_matches(name, (*NAMES, "warm_start", "entropy"), 1)
    mean = f"; did you mean {close[0]!r}?" if close else ""
    bounds = "; bounds of x are lb and ub" if name[:1] in "lu" else ""
    return SettingsError(f"{name!r} is no setting, expected one of {', '.join(NAMES)}{mean}{bounds}")


def _check_eps(name: str, value: float | None) -> None:
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {value!r}, expected None or a finite number >= 0")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")
