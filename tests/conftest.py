"""Settings of the machine for all tests: one thread, no window, no network."""

import gc
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import thinning

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # else each import of bitsandbytes imports torch's compiler

# Compiling all tests and modules takes ten seconds in each process of pytest. Where that must not be left beside the
# sources, it is left elsewhere, also for the programs that tests start.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(tempfile.gettempdir()) / f"gimbal-tests-{os.getuid() if os.name != 'nt' else ''}")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# A signal that is ignored (`nohup pytest`, a shell's background job) would stay so in every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if os.name != "nt" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every case of every test, not each two values once")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The short run, unless all is asked for or single tests are named."""
    if any("::" in argument for argument in config.args):
        return
    if config.getoption("--all"):
        for group in thinning.groups(items):
            thinning.named(group)  # an error in the short run is one here too
        return
    kept = set(thinning.short(items))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_collection_finish():
    """pytest attaches two handlers to each logger that does not propagate, three times for each test: a millisecond for
    torch's eighty, which no test reads."""
    for name, logger in logging.getLogger().manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True
    settle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    result = yield
    if nextitem is None or nextitem.path != item.path:
        settle()
    return result


def settle() -> None:
    """Exempt what is there now from garbage collection: thousands of tests, all libraries and what a file of tests has
    left. Each full collection would walk over them, and trainings ask for many."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 25, 25)  # tests make many tensors and few cycles


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """Tests of file names that are not UTF-8 log them; a worker process could not send such a report, and the whole
    session would end."""
    return encodable((yield))


def encodable(value: Any) -> Any:
    """A report, with what UTF-8 lacks escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {encodable(key): encodable(inner) for key, inner in value.items()}
    return type(value)(map(encodable, value)) if isinstance(value, list | tuple) else value


@pytest.fixture
def forget_accelerate():
    """Accelerate keeps one state per process; other tests want their own."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile compiles, with nothing left of what it has compiled before."""
    import torch
    from torch._dynamo import config

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    torch.compiler.reset()
    with config.patch(disable=False):  # pyright: ignore
        yield
    torch.compiler.reset()
