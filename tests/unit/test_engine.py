"""How rows come back from an engine to the thread that asked. The engine itself is in tests/distributed/test_generate.py."""

import threading

from fusion.stages.engine import Results
from fusion.stages.journal import Sampled


def sampled(row: int) -> Sampled:
    return Sampled(row, (row,), "stop")


def test_what_is_there_is_taken_when_the_time_is_up_and_the_rest_stays_missing():
    results = Results()
    results.expect(3)
    results.put(sampled(0))
    assert [s.row for s in results.take(timeout=0.01)] == [0]
    assert results.missing == 2
    assert results.take(timeout=0.01) == []


def test_the_last_row_wakes_the_caller_at_once():
    results = Results()
    results.expect(2)
    results.put(sampled(0))
    threading.Timer(0.05, results.put, [sampled(1)]).start()
    # Without the wake-up this would wait for ever.
    assert [s.row for s in results.take(timeout=threading.TIMEOUT_MAX)] == [0, 1]
    assert results.missing == 0


def test_rows_handed_over_later_are_waited_for_too():
    """The engine may have finished the first rows before the next ones are handed over."""
    results = Results()
    results.expect(1)
    results.put(sampled(0))
    results.expect(1)
    assert [s.row for s in results.take(timeout=0.01)] == [0]
    assert results.missing == 1
    results.put(sampled(1))
    assert [s.row for s in results.take(timeout=0.01)] == [1]
    assert results.missing == 0


def test_every_row_comes_back_once_from_a_thread_that_gives_while_another_asks():
    results = Results()
    taken: list[int] = []
    num = 2000

    def give() -> None:
        for row in range(num):
            results.put(sampled(row))

    results.expect(num)
    giver = threading.Thread(target=give)
    giver.start()
    while results.missing:
        taken += [s.row for s in results.take(timeout=0.001)]
    giver.join()
    assert taken == list(range(num))
