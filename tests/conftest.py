"""Fixtures that several kinds of tests share. What is missing skips on a laptop and fails in CI."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import psutil
import pytest

from worker.local.spec import MissingPart, StackSpec
from worker.local.stack import Stack, running

# `make test` has ten minutes; `make test-long` asks every property far more often.
hypothesis.settings.register_profile("quick", max_examples=20, deadline=None)
hypothesis.settings.register_profile("long", max_examples=400, deadline=None)
hypothesis.settings.load_profile("quick")

# Engines on threads are this process, and official wheels of ONNX Runtime upload from 1.29 on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

IN_CI = os.environ.get("CI") == "true"
ENDING_S = 5.0


def missing(reason: str) -> NoReturn:
    """Skip, or in CI fail: there, everything that a test needs is promised."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the third-party models and pictures."""
    named = os.environ.get("DARKROOM_TEST_ASSETS")
    if not named:
        pytest.skip("DARKROOM_TEST_ASSETS is not set: no third-party models and pictures here")
    folder = Path(named)
    if not folder.is_dir():
        missing(f"DARKROOM_TEST_ASSETS={named} is not a folder")
    return folder


@pytest.fixture
def unique() -> str:
    """A word that no other test uses, for topics and groups."""
    return uuid.uuid4().hex[:12]


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Stack]:
    """One Kafka node and a Redis for the whole session; no topics but those that tests create."""
    del no_process_left  # is asked for so that it looks after this fixture's end
    spec = StackSpec(data=tmp_path_factory.mktemp("stack"), topics=())
    try:
        with running(spec) as stack:
            yield stack
    except MissingPart as error:
        missing(str(error))


@pytest.fixture(scope="session", autouse=True)
def no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail when the session leaves a process behind: a child, or a stack in its folders."""
    yield
    _, left = psutil.wait_procs(_leavings(str(tmp_path_factory.getbasetemp())), timeout=ENDING_S)
    told = [f"{process.pid}: {' '.join(process.cmdline())[:200]}" for process in left]
    for process in left:
        process.kill()
    assert not told, f"processes left behind (killed now): {told}"


def _leavings(folder: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    of_stacks = [
        process
        for process in psutil.process_iter(["cmdline"])
        if folder in " ".join(process.info["cmdline"] or ())
    ]
    found = {process.pid: process for process in (*children, *of_stacks)}
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process in found.values()
        if process.pid not in ours and not _is_resource_tracker(process)
    ]


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Python's own helper of multiprocessing; it ends with the interpreter."""
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
