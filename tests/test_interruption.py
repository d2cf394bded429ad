"""Interruptions are raised where they do no harm, and are never lost."""

import threading

import pytest

from mqasearch.interruption import interruptible, postpone, raise_postponed, undisturbed


class Stop(KeyboardInterrupt):
    """What a signal's handler raises."""


def interrupt() -> None:
    if not postpone(stop := Stop()):
        raise stop


def test_outside_of_all_blocks_it_is_raised_at_once() -> None:
    assert not postpone(Stop())
    raise_postponed()


def test_it_waits_until_the_outermost_block_has_ended() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            with undisturbed():
                interrupt()
                done.append("inner")
            done.append("outer")

    with pytest.raises(Stop):
        work()
    assert done == ["inner", "outer"]
    raise_postponed()  # it was raised once


@pytest.mark.parametrize("early", [True, False])
def test_it_is_raised_within_an_interruptible_block_or_on_entering_it(early: bool) -> None:
    done = []

    def work() -> None:
        with undisturbed():
            if early:
                interrupt()
            with interruptible():
                done.append("entered")
                interrupt()
                done.append("more")

    with pytest.raises(Stop):
        work()
    assert done == ["entered"] * (not early)
    raise_postponed()


def test_what_cleans_up_after_an_interruption_is_undisturbed_again() -> None:
    again = Stop()

    def work() -> None:
        with undisturbed():
            try:
                with interruptible():
                    interrupt()
            finally:
                assert postpone(again)

    with pytest.raises(Stop) as caught:
        work()
    assert caught.value is again


def test_a_fault_within_the_block_does_not_hide_it() -> None:
    def work() -> None:
        with undisturbed():
            interrupt()
            raise ValueError("a fault")

    with pytest.raises(Stop) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_blocks_concern_their_own_thread() -> None:
    answers = []
    with undisturbed():
        other = threading.Thread(target=lambda: answers.append(postpone(Stop())))
        other.start()
        other.join()
    assert answers == [False]
