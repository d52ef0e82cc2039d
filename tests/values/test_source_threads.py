"""Reading source in several threads at once."""

import gc
import inspect
import threading
import time

import pytest

import nbflow.store.journal
from nbflow.core.syntax import syntax_tree


@pytest.fixture
def _busy_collector():
    """Let the collector give the interpreter away in the middle of whatever is being built."""
    before = gc.get_threshold()

    def give_way(_phase, _info):
        time.sleep(0)

    gc.callbacks.append(give_way)
    gc.set_threshold(50)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(give_way)


@pytest.mark.usefixtures("_busy_collector")
def test_threads_that_read_source_at_once_do_not_disturb_each_other():
    """CPython 3.11 raises SystemError where two threads build syntax trees at once; `syntax_tree` does not."""
    source = inspect.getsource(nbflow.store.journal)
    sizes, errors = set(), []

    def read():
        try:
            for _ in range(10):
                sizes.add(len(syntax_tree(source).body))
        except SystemError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == errors
    assert 1 == len(sizes)
