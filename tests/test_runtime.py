"""Work on all cores: results come in order, and only a few of them wait."""

import threading

import pytest

from pipeline.runtime import beside, cores


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_their_items(count: int) -> None:
    assert list(beside(lambda number: number * 2, range(count))) == [2 * number for number in range(count)]


def test_no_more_results_are_made_than_a_few_before_they_are_read() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def act(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    for read, number in enumerate(beside(act, range(100))):
        assert read == number
        assert len(begun) <= read + 2 * cores() + 1


def test_an_error_in_one_item_comes_out_where_its_result_would() -> None:
    found = beside(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
