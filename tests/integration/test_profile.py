"""`darkroom profile` of a real worker that serves."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.broker import Topics
from tests.integration.traffic import Traffic
from tests.ledger import account
from tests.workers import Crew, Worker

pytestmark = pytest.mark.kafka


def profile(worker: Worker, *arguments: str) -> "subprocess.CompletedProcess[str]":
    config = worker.home / "worker.yaml"
    command = [sys.executable, "-m", "worker", "profile", "--config", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.long  # its parts are in test_engine_profile and test_profiler
def test_a_worker_is_profiled_while_it_serves_and_loses_nothing(
    topics: Topics, crew: Crew, tmp_path: Path
) -> None:
    worker = crew.start(topics, {"engine": {"lanes": 2}}).wait_ready()
    traffic = Traffic(topics, crew)
    traffic.more(50)
    out = tmp_path / "profile"
    ended: list[subprocess.CompletedProcess[str]] = []
    arguments = ("--seconds", "2", "--output", str(out), "--json")
    asking = threading.Thread(target=lambda: ended.append(profile(worker, *arguments)))
    asking.start()
    traffic.until(lambda: not asking.is_alive(), "the profile")
    (said,) = ended
    assert said.returncode == 0, said.stderr

    answer = json.loads(said.stdout)
    assert answer["lanes"] == 2
    assert answer["records"] >= answer["batches"] > 0
    assert sum(share["share"] for share in answer["shares"]) == pytest.approx(1.0)
    worked = {share["stage"] for share in answer["shares"] if share["share"] > 0}
    assert {"decode", "preprocess", "kernels", "heads", "send"} <= worked
    assert answer["lane_s"] == pytest.approx(2 * answer["seconds"], rel=0.3)
    assert min(answer["queues"].values()) > 0
    assert answer["runs"]
    for runs in answer["runs"]:
        assert runs["copy_in"] + runs["kernels"] + runs["copy_out"] == pytest.approx(1.0)
    assert answer["notes"] == []

    events: list[dict[str, Any]] = json.loads((out / "trace.json").read_text())["traceEvents"]
    named = {
        event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"
    }
    pids = {engine.pid for engine in worker.engines()}
    assert set(named) == {worker.process.pid, *pids}
    assert all(named[pid].startswith("engine digits/1") for pid in pids)
    kinds = {(event["pid"], event["cat"]) for event in events if event["ph"] == "X"}
    engines = {(pid, kind) for pid in pids for kind in ("stage", "python", "Node")}
    assert {(worker.process.pid, "python"), *engines} <= kinds
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in events if event["ph"] == "X")
    folded = (out / "samples.folded").read_text()
    assert f"worker {worker.process.pid};MainThread;" in folded
    assert "worker.engine.lanes.Lane.work" in folded
    assert "100.0%" in (out / "answer.txt").read_text()

    traffic.finish()
    assert worker.stop() == 0
    account(topics, traffic.feed.sent, doomed=traffic.doomed)
    traffic.close()
    assert list((worker.home / "profile").iterdir()) == []
