from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from medmoco.utils.stopping import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stop_requests__a_signal_is_a_flag_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) is before


def test_stop_requests__a_second_ctrl_c_stops_at_once() -> None:
    with stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_stop_requests__what_is_asked_inside_is_asked_outside_too() -> None:
    with stop_requests() as outside:
        with stop_requests() as inside:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inside()
        assert outside()
        with stop_requests() as inside:
            assert not inside()


def test_stop_requests__in_another_thread_there_are_no_signals() -> None:
    def job() -> bool:
        with stop_requests() as asked:
            return asked()

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(job).result()
