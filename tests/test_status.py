# SPDX-License-Identifier: Apache-2.0
"""The statuses: their numbers are part of the operators' contract, their words are for people."""

import copy
import pickle

import pytest
import torch

from optlayer import Status

NUMBERS = {
    "UNSOLVED": 0,
    "SOLVED": 1,
    "PRIMAL_INFEASIBLE": 2,
    "DUAL_INFEASIBLE": 3,
    "ALMOST_SOLVED": 4,
    "MAX_ITERATIONS": 5,
    "NUMERICAL_ERROR": 6,
    "INSUFFICIENT_PROGRESS": 7,
    "NON_CONVEX": 8,
    "INVALID_DATA": 9,
}


def test_numbers_do_not_change() -> None:
    assert {status.name: int(status) for status in Status} == NUMBERS


@pytest.mark.parametrize("status", Status)
def test_every_status_has_one_sentence_of_diagnosis_and_one_of_advice(status: Status) -> None:
    for sentence in (status.diagnosis, status.advice):
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_the_diagnosis_of_invalid_data_fits_a_problem_without_an_entropy() -> None:
    assert "NaN" in Status.INVALID_DATA.diagnosis
    assert "entropy" not in Status.INVALID_DATA.diagnosis
    assert "an entropy or a temperature, where there is one, must be positive" in Status.INVALID_DATA.advice


def test_sentences_differ() -> None:
    assert len({status.diagnosis for status in Status}) == len(Status)
    assert len({status.advice for status in Status}) == len(Status)


@pytest.mark.parametrize("status", Status)
def test_a_status_is_an_integer_that_survives_copy_and_pickle(status: Status) -> None:
    assert Status(int(status)) is status
    assert pickle.loads(pickle.dumps(status)) is status
    assert copy.deepcopy(status) is status


@pytest.mark.parametrize("compiled", [False, True])
def test_a_status_compares_with_a_tensor(compiled: bool) -> None:
    """Also in a compiled graph, where an ordinary IntEnum would compare as False without an error."""

    def compare(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return t == Status.SOLVED, t != Status.SOLVED

    if compiled:
        compare = torch.compile(compare, fullgraph=True, backend="eager")
    equal, unequal = compare(torch.tensor([0, 1, 2]))
    assert equal.tolist() == [False, True, False]
    assert unequal.tolist() == [True, False, True]


def test_a_status_compares_with_an_integer() -> None:
    assert Status.SOLVED == 1
    assert Status.SOLVED != 2
    assert {1: "one"}[Status.SOLVED] == "one"
