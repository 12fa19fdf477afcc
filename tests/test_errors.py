# SPDX-License-Identifier: Apache-2.0
"""Every exception of optlayer is also the standard one that a caller would expect."""

import pytest

from optlayer import OptlayerError, ProblemError, SettingsError, SolverError


@pytest.mark.parametrize(
    ("error", "standard"),
    [(ProblemError, ValueError), (SettingsError, ValueError), (SolverError, RuntimeError)],
)
def test_an_error_is_ours_and_the_standard_one(error: type[Exception], standard: type[Exception]) -> None:
    assert issubclass(error, OptlayerError)
    assert issubclass(error, standard)
    with pytest.raises(standard, match="said so"):
        raise error("said so")
