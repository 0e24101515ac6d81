import signal
import threading

import pytest
import torch
from networks import kill

import shrinknets_fast as sn
from shrinknets_fast import work as work_of_a_collection
from shrinknets_fast.interrupts import uninterrupted

pytestmark = pytest.mark.usefixtures("ctrl_c")


def test_an_interrupt_waits_for_the_end():
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")
        steps.append("after the block")
    assert steps == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_and_in_other_threads_nothing_happens():
    done = []

    def work():
        with uninterrupted():
            done.append(1)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1, 1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_collection_leaves_a_whole_model(monkeypatch):
    model = torch.nn.Sequential(sn.FilteredLinear(5, 20), torch.nn.Linear(20, 3))
    x = torch.randn(4, 5)
    kill(model)
    before, gc = model(x), sn.GarbageCollector(model, x)
    compact = work_of_a_collection.compact_

    def interrupted(work):
        compact(work[:1])
        signal.raise_signal(signal.SIGINT)
        compact(work[1:])

    monkeypatch.setattr(work_of_a_collection, "compact_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gc.collect()
    assert len(model[0].theta) < 20
    torch.testing.assert_close(model(x), before)
