"""Signals: noted, not obeyed on the spot; handlers are put back."""

from __future__ import annotations

import signal
import threading

import pytest

from curvlab.engine.interrupts import EXIT_CODES, Interrupts


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)]
)
def test_a_signal_is_noted_and_the_program_goes_on(name: str, code: int) -> None:
    with Interrupts() as interrupts:
        assert interrupts.caught is None
        assert interrupts.exit_code == 0
        signal.raise_signal(getattr(signal, name))
        assert interrupts.caught == name
        assert interrupts.exit_code == code


def test_the_first_signal_counts() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.exit_code == 75


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.exit_code == 130


def test_a_second_sigterm_changes_nothing() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.caught == "SIGTERM"


def test_handlers_are_put_back_whatever_happens() -> None:
    before = {name: signal.getsignal(getattr(signal, name)) for name in EXIT_CODES}
    during = {}

    def fail_inside() -> None:
        with Interrupts():
            during.update({name: signal.getsignal(getattr(signal, name)) for name in EXIT_CODES})
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    after = {name: signal.getsignal(getattr(signal, name)) for name in EXIT_CODES}
    assert after == before
    assert all(during[name] != before[name] for name in EXIT_CODES)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with Interrupts() as interrupts:
            seen.append(signal.getsignal(signal.SIGTERM))
            seen.append(interrupts.caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_a_run_under_nohup_goes_on_when_the_terminal_is_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert interrupts.caught is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
