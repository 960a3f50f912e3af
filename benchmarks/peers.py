"""The peers as processes: started, watched, measured, ended. None is left behind."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from benchmarks.cases import Case
from benchmarks.loops.spec import LoopSpec
from worker.inference.budget import cores
from worker.local.ports import free_ports
from worker.local.spec import HOST

ROOT = Path(__file__).parents[1]
DARKROOM = "Darkroom"
AIOKAFKA = "by hand, aiokafka"
CONFLUENT = "by hand, confluent-kafka"
NAIVE = "naive"
_MODULES = {
    NAIVE: "benchmarks.loops.naive",
    AIOKAFKA: "benchmarks.loops.tuned_aiokafka",
    CONFLUENT: "benchmarks.loops.tuned_confluent",
}
_END_S = 40.0


class Where(NamedTuple):
    """Topics and group of a run."""

    bootstrap: str
    input: str
    output: str
    dead: str
    group: str


class Usage(NamedTuple):
    """CPU seconds used so far, and memory now, by role: worker, engine, broker."""

    at_s: float
    """Epoch seconds."""
    cpu_s: dict[str, float]
    idle_s: float
    """Seconds that the machine's cores had nothing to do."""
    rss_mb: dict[str, float]


def busy_cores(before: Usage, after: Usage) -> float:
    """Return how many cores the peer and the broker kept busy in between."""
    used_s = sum(after.cpu_s.values()) - sum(before.cpu_s.values())
    return used_s / (after.at_s - before.at_s)


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process."""
    return float(sum(process.cpu_times()[:2]))


class Peer:
    """A started peer."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._port = port

    def check(self) -> None:
        """Raise when it has ended by itself."""
        if self._process.poll() is not None:
            tail = self._log.read_bytes()[-3000:].decode(errors="replace")
            raise SystemExit(f"{self.name} ended with {self._process.returncode}:\n{tail}")

    def usage(self, broker: psutil.Process) -> Usage:
        worker = psutil.Process(self._process.pid)
        roles = {"worker": [worker], "broker": [broker]}
        if engines := worker.children():
            roles["engine"] = engines
        cpu = {name: sum(map(cpu_s, each)) for name, each in roles.items()}
        rss = {
            name: sum(one.memory_info().rss for one in each) / 1e6 for name, each in roles.items()
        }
        times = psutil.cpu_times()
        return Usage(time.time(), cpu, times.idle + getattr(times, "iowait", 0.0), rss)

    def processes(self) -> tuple[psutil.Process, list[psutil.Process]]:
        """Return Darkroom's worker and its engines."""
        worker = psutil.Process(self._process.pid)
        return worker, worker.children()

    def logged_s(self, event: str) -> float:
        """Return when Darkroom first logged an event, epoch seconds."""
        lines = map(json.loads, filter(_is_json, self._log.read_text().splitlines()))
        stamp = next(line["timestamp"] for line in lines if line["event"] == event)
        return datetime.fromisoformat(stamp).timestamp()

    def metrics(self) -> str:
        """Return what Darkroom tells of itself; empty for a loop, which tells nothing."""
        if not self._port:
            return ""
        with urllib.request.urlopen(f"http://{HOST}:{self._port}/metrics", timeout=10) as answer:
            return str(answer.read(), "utf-8")

    def end(self) -> None:
        """Ask it to end; Darkroom must drain and answer 0."""
        self.check()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(_END_S)
        if self.name == DARKROOM and code != 0:
            tail = self._log.read_bytes()[-3000:].decode(errors="replace")
            raise SystemExit(f"{self.name} ended with {code} instead of draining:\n{tail}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(_END_S)


@contextlib.contextmanager
def running(
    name: str,
    case: Case,
    where: Where,
    *,
    profile: Path | None = None,
    batch: Mapping[str, Any] | None = None,
) -> Iterator[Peer]:
    """Have a peer for the length of a block; `batch` are settings of Darkroom's."""
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        home = Path(folder)
        log, port = home / "log", 0
        if name == DARKROOM:
            (port,) = free_ports(1)
            config = home / "worker.yaml"
            settings = _settings(case, where, home, port)
            config.write_text(
                yaml.safe_dump({**settings, "batch": dict(batch or settings["batch"])})
            )
            command = ["-m", "worker", "run", "--config", str(config)]
            if profile is not None:
                command = ["-m", "benchmarks.sampled", str(profile), *command[2:]]
        else:
            command = ["-m", _MODULES[name], _spec(case, where).to_json()]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        peer = Peer(name, process, log, port)
        try:
            yield peer
        finally:
            peer.kill()


def _is_json(line: str) -> bool:
    return line.startswith("{")


def _settings(case: Case, where: Where, home: Path, port: int) -> dict[str, Any]:
    """Return what is not at its default: where, which model, and the cap."""
    return {
        "kafka": {
            "bootstrap_servers": where.bootstrap,
            "group_id": where.group,
            "input_topics": [where.input],
            "output_topic": where.output,
            "dead_letter_topic": where.dead,
        },
        "models": {
            "repository": str(case.repository),
            "default": case.model,
            "active": {case.model: case.version},
        },
        "batch": {"max_size": case.cap},
        "engine": {"policy": "cpu"},
        "http": {"host": HOST, "port": port},
        "data_dir": str(home),
    }


def _spec(case: Case, where: Where) -> LoopSpec:
    return LoopSpec(
        bootstrap=where.bootstrap,
        input=where.input,
        output=where.output,
        group=where.group,
        lanes=cores(),
        chunk=case.chunk,
        chunks=case.chunks,
        poll=case.poll,
        batches=case.batches,
        recipe=case.recipe,
    )
