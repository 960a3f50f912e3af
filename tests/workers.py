"""Real `darkroom run` processes: started with settings of a test, asked, ended, what they leave.

It knows processes, files and HTTP; nothing of Kafka but the names that go into the settings.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.broker import Topics

READY_S = 60.0
EXIT_S = 40.0
POLL_S = 0.02
SESSION_TIMEOUT_MS = 2000
_LOG_CHARS = 4000

Settings = Mapping[str, Mapping[str, Any] | str]


class Worker:
    """One worker process, its log and its HTTP port."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.asked = False
        """To end, by us."""
        self._log = log

    @property
    def home(self) -> Path:
        """Its data_dir, where its settings lie too (`worker.yaml`)."""
        return self._log.parent

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def end_of_log(self) -> str:
        return f"{self._log}:\n{self.log[-_LOG_CHARS:]}"

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log that tell of this event."""
        lines = [line for line in self.log.splitlines() if line.startswith("{")]
        return [said for said in map(_parsed, lines) if said.get("event") == event]

    @property
    def port(self) -> int:
        """Where its HTTP server listens; 0 while it does not."""
        started = self.events("worker starting")
        return int(started[0]["http"].rpartition(":")[2]) if started else 0

    def ask(self, path: str) -> tuple[int, str]:
        """Answer of its HTTP server: status and body; 0 while nobody listens."""
        with contextlib.suppress(OSError):
            request = f"http://127.0.0.1:{self.port}{path}"
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
        return 0, ""

    def unready_because(self) -> dict[str, str]:
        """What /readyz says of each part that is not ready; empty: it is ready."""
        status, body = self.ask("/readyz")
        if status == 0:
            return {"http": "nobody listens"}
        reasons: dict[str, str] = json.loads(body)["reasons"]
        return reasons

    def notes(self) -> dict[str, str]:
        """What /readyz says is amiss though the worker is ready."""
        notes: dict[str, str] = json.loads(self.ask("/readyz")[1]).get("notes", {})
        return notes

    def wait_ready(self) -> "Worker":
        self.until(lambda: not self.unready_because(), "ready")
        return self

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float = READY_S) -> None:
        """Wait until something holds of a worker that lives."""
        end_s = time.monotonic() + deadline_s
        while not condition():
            code = self.process.poll()
            assert code is None, f"the worker ended with {code} before: {what}\n{self.end_of_log}"
            assert time.monotonic() < end_s, f"not in {deadline_s} s: {what}\n{self.end_of_log}"
            time.sleep(POLL_S)

    def engines(self) -> list[psutil.Process]:
        """Its engine processes that there are now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if _is_engine(child)]
        return []

    @property
    def engine(self) -> psutil.Process | None:
        """Its only engine, where there is one now."""
        return next(iter(self.engines()), None)

    def cpu_share(self, *, over_s: float) -> float:
        """Cores that it keeps busy, its engine not counted."""
        process = psutil.Process(self.process.pid)
        process.cpu_percent()
        time.sleep(over_s)
        return process.cpu_percent() / 100

    def kill(self) -> None:
        self.asked = True
        self.process.kill()
        self.process.wait(EXIT_S)

    def terminate(self) -> None:
        self.asked = True
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline_s: float = EXIT_S) -> int:
        """Wait for its end; return the exit code."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended in {deadline_s} s\n{self.end_of_log}") from None

    def died(self) -> int:
        """Wait for an end that a failpoint makes; return the exit code."""
        self.asked = True
        return self.wait()

    def stop(self) -> int:
        self.terminate()
        return self.wait()


class Crew:
    """The workers of one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: list[Worker] = []

    def start(
        self,
        topics: Topics,
        settings: Settings | None = None,
        *,
        failpoint: str | None = None,
        arguments: tuple[str, ...] = (),
    ) -> Worker:
        """Start a worker; it is not ready yet. `settings` go over those of every test."""
        home = self._folder / f"worker-{len(self._workers)}"
        home.mkdir(parents=True)
        config, log = home / "worker.yaml", home / "worker.log"
        config.write_text(yaml.safe_dump(_merged(_settings(topics, home), settings or {})))
        environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        if failpoint is not None:
            environment["DARKROOM_FAILPOINT"] = failpoint
        command = [sys.executable, "-m", "worker", "run", "--config", str(config), *arguments]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
            )
        worker = Worker(process, log)
        self._workers.append(worker)
        return worker

    def check(self) -> None:
        """Fail when a worker has ended that nobody has ended."""
        for worker in self._workers:
            code = worker.process.poll()
            assert code is None or worker.asked, f"a worker ended with {code}\n{worker.end_of_log}"

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n\n".join(worker.end_of_log for worker in self._workers)

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()


@contextlib.contextmanager
def crew_in(folder: Path) -> Iterator[Crew]:
    """Have workers for the length of a block; those that are left are killed."""
    crew = Crew(folder)
    try:
        yield crew
    finally:
        crew.end()


class Belongings:
    """What a worker and its engine hold, to be looked for when they are dead."""

    def __init__(self, worker: Worker) -> None:
        engine = worker.engine
        assert engine is not None
        self.pids = (worker.process.pid, engine.pid)
        self.port = worker.port
        self._engine = engine
        self.held = {
            link
            for pid in self.pids
            for link in _links(pid)
            if link.startswith(("socket:", "/memfd:"))
        }

    def left(self) -> list[str]:
        """Whatever of it is still there."""
        found = [f"engine {self._engine.pid}"] if self._engine.is_running() else []
        for pid in psutil.pids():
            found += [f"{link} held by {pid}" for link in _links(pid) if link in self.held]
        return found


def _is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end while it is looked at
        return "worker.engine" in process.cmdline()
    return False


def peak_kb(pid: int) -> int:
    """VmHWM of a process: unlike ru_maxrss it does not begin with its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def _links(pid: int) -> set[str]:
    """Descriptors and maps of a process, those in memory with their inode numbers."""
    links: set[str] = set()
    folder = Path("/proc") / str(pid) / "fd"
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                link = str(entry.readlink())
                if link.startswith("/memfd:"):
                    link = f"{link} {entry.stat().st_ino}"
                links.add(link)
    return links


def _settings(topics: Topics, home: Path) -> dict[str, Any]:
    return {
        "kafka": {
            "bootstrap_servers": topics.bootstrap,
            "group_id": topics.group,
            "input_topics": [topics.input],
            "output_topic": topics.output,
            "dead_letter_topic": topics.dead,
            "session_timeout_ms": SESSION_TIMEOUT_MS,
        },
        "shutdown": {"drain_deadline_s": 10},
        "http": {"port": 0},
        "data_dir": str(home),
    }


def _merged(base: dict[str, Any], over: Settings) -> dict[str, Any]:
    return base | {
        name: {**base.get(name, {}), **value} if isinstance(value, Mapping) else value
        for name, value in over.items()
    }


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
