"""Processes ahead of a network and behind it: order, errors, and a process that is killed."""

import os

import pytest

from nnunet_brats_ext.inference.workers import workers
from nnunet_brats_ext.storage.errors import UserError


@pytest.mark.parametrize("processes", [0, 2])
def test_results_come_in_the_order_of_the_items(processes):
    with workers(processes) as them:
        assert list(them.map(abs, range(-9, 9))) == [abs(number) for number in range(-9, 9)]


@pytest.mark.parametrize("processes", [0, 2])
def test_an_error_behind_is_raised_before_the_block_ends(processes, tmp_path):
    with pytest.raises(ValueError, match="no number"), workers(processes) as them:
        them.run(int, "no number")
        for number in range(5):
            them.run(os.mkdir, tmp_path / str(number))


@pytest.mark.parametrize("processes", [0, 2])
def test_an_error_ahead_is_raised_where_its_result_is_due(processes):
    with workers(processes) as them:
        results = them.map(int, ["1", "no number", "3"])
        assert next(results) == 1
        with pytest.raises(ValueError, match="no number"):
            next(results)


def test_a_process_that_is_killed_is_said_with_what_to_do():
    with pytest.raises(UserError, match="use fewer with -np"), workers(1) as them:
        them.run(os._exit, 1)


def test_few_items_are_taken_ahead():
    taken = []
    with workers(2) as them:
        results = them.map(abs, (taken.append(number) or number for number in range(20)))
        for _ in range(5):
            next(results)
        assert len(taken) <= 5 + 3
