"""Counts: tallies, their parents, and differences of snapshots."""

import threading

import pytest
import torch

import hvpopt
from hvpopt import Counts
from hvpopt.operators.symmetric import SumOperator

NAMES = ("values", "gradients", "products", "propagations")


@pytest.mark.parametrize("name", NAMES)
def test_tally_advances_the_named_number_alone(name):
    counts = Counts()
    counts.tally(**{name: 3})
    counts.tally(**{name: 4})
    assert counts.as_dict() == {**dict.fromkeys(NAMES, 0), name: 7}


def test_child_starts_at_zero_and_reports_to_every_ancestor():
    root = Counts(values=1, gradients=2, products=3, propagations=4)
    child = root.child()
    grandchild = child.child()
    assert grandchild == Counts()
    grandchild.tally(values=1, gradients=1, products=1, propagations=1)
    assert grandchild == child == Counts(1, 1, 1, 1)
    assert root == Counts(2, 3, 4, 5)


def test_siblings_do_not_see_each_other():
    root = Counts()
    first, second = root.child(), root.child()
    first.tally(products=2)
    assert second == Counts()
    assert root.products == 2


def test_parent_does_not_report_to_its_child():
    root = Counts()
    child = root.child()
    root.tally(products=5)
    assert child.products == 0


def test_snapshot_stays_and_reports_to_nobody():
    root = Counts()
    child = root.child()
    child.tally(products=1)
    snapshot = child.snapshot()
    child.tally(products=1)
    assert snapshot.products == 1
    snapshot.tally(products=10)
    assert (child.products, root.products) == (2, 2)


def test_difference_and_sum_leave_their_operands_and_parents_alone():
    root = Counts()
    child = root.child()
    child.tally(values=1, gradients=5, products=9, propagations=2)
    before = Counts(values=1, gradients=2, products=3, propagations=0)
    assert child - before == Counts(0, 3, 6, 2)
    assert child + before == Counts(2, 7, 12, 2)
    assert child == root == Counts(1, 5, 9, 2)
    assert before == Counts(1, 2, 3, 0)


def test_sums_that_share_a_term_between_threads_count_their_own_propagations():
    meet = threading.Barrier(2)

    class Waves(hvpopt.MatrixOperator):
        def _product(self, vector):
            meet.wait(10)  # both are within their product
            self.counts.tally(propagations=3)
            meet.wait(10)
            return super()._product(vector)

    shared = Waves(torch.eye(2, dtype=torch.float64))
    sums = [SumOperator([(1.0, shared)]) for _ in range(2)]
    vector = torch.ones(2, dtype=torch.float64)
    threads = [threading.Thread(target=s.matvec, args=(vector,)) for s in sums]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [s.counts.propagations for s in sums] == [3, 3]
    assert shared.counts.propagations == 6
