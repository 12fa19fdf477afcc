# SPDX-License-Identifier: Apache-2.0
"""The settings are checked in one place, and say which field is wrong, what it is and what it should be."""

import dataclasses
import pickle
import re
from typing import Any

import pytest
import torch

from optlayer import Settings, SettingsError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps_abs": -1e-9}, r"eps_abs is -1e-09, expected None or a finite number >= 0"),
        ({"eps_abs": float("nan")}, r"eps_abs is nan, expected"),
        ({"eps_rel": float("inf")}, r"eps_rel is inf, expected"),
        ({"eps_rel": "1e-6"}, r"eps_rel is '1e-6', expected"),
        ({"eps_abs": True}, r"eps_abs is True, expected"),
        ({"eps_abs": 0.0, "eps_rel": 0}, r"eps_abs and eps_rel are both 0"),
        ({"max_iter": 0}, r"max_iter is 0, expected an integer >= 1"),
        ({"max_iter": 10.0}, r"max_iter is 10.0, expected an integer >= 1"),
        ({"max_iter": True}, r"max_iter is True, expected an integer >= 1"),
        ({"backend": "gpu"}, r"backend is 'gpu', expected one of 'auto', 'native', 'reference'"),
        ({"formulation": None}, r"formulation is None, expected one of 'auto', 'split', 'range'"),
        ({"on_failure": ["nan"]}, r"on_failure is \['nan'\], expected one of 'nan', 'raise', 'warn', 'ignore'"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found_and_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**fields)
    with pytest.raises(SettingsError, match=message):
        Settings().override(**fields)


def test_an_unknown_field_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(SettingsError, match=r"'eps' is no setting, expected one of eps_abs, eps_rel, max_iter"):
        Settings().override(eps=1e-3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epsabs", "; did you mean 'eps_abs'?"),
        ("maxiter", "; did you mean 'max_iter'?"),
        ("lower", "; bounds of x are lb and ub"),
        ("upper_bound", "; bounds of x are lb and ub"),
        ("Q", ""),
    ],
)
def test_a_misspelt_name_comes_with_the_one_that_was_meant(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"formulation, on_failure, factorisation{hint}") + "$"):
        Settings().override(**{name: 1})
    with pytest.raises(SettingsError, match=re.escape(f"formulation, on_failure, factorisation{hint}") + "$"):
        Settings(**{name: 1})


def test_override_changes_the_named_fields_only() -> None:
    settings = Settings(max_iter=7)
    assert settings.override(eps_abs=1e-4) == Settings(max_iter=7, eps_abs=1e-4)
    assert settings.override() is settings


def test_accuracy_left_open_follows_the_dtype() -> None:
    assert Settings().resolve(torch.float64) == Settings(eps_abs=1e-9, eps_rel=1e-9)
    assert Settings().resolve(torch.float32) == Settings(eps_abs=1e-5, eps_rel=1e-5)
    assert Settings(eps_rel=0.0).resolve(torch.float32) == Settings(eps_abs=1e-5, eps_rel=0.0)
    given = Settings(eps_abs=1e-3, eps_rel=1e-2)
    assert given.resolve(torch.float64) is given
    with pytest.raises(SettingsError, match=r"dtype is torch.float16, expected torch.float64 or torch.float32"):
        Settings().resolve(torch.float16)


def test_settings_are_immutable_hashable_and_pickled() -> None:
    settings = Settings(eps_abs=1e-3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.max_iter = 3  # type: ignore[misc]
    assert hash(settings) == hash(Settings(eps_abs=1e-3))
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_field_is_documented() -> None:
    assert Settings.__doc__ is not None
    for field in dataclasses.fields(Settings):
        assert f"        {field.name}: " in Settings.__doc__
