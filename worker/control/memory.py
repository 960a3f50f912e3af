"""The last desired state that was applied, on disk: so that a worker starts without Redis."""

import contextlib
import os
import threading
from pathlib import Path

import structlog

from worker.control.documents import parse_state
from worker.control.messages import DesiredState, encode_state
from worker.errors import StateError

_log = structlog.get_logger()


class Memory:
    """One file of canonical JSON under the data folder; workers of one fleet may share it."""

    def __init__(self, data_dir: Path, fleet: str) -> None:
        self._file = data_dir / "control" / f"{fleet}.json"
        # A save goes on, on its thread, when whoever asked for it was cancelled by a newer state.
        self._saving = threading.Lock()

    def load(self) -> DesiredState | None:
        """Return what was remembered; None where nothing is, or nothing that can be used."""
        try:
            return parse_state(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, StateError) as error:
            _log.warning(
                "the last desired state cannot be read", file=str(self._file), why=str(error)
            )
            return None

    def save(self, state: DesiredState) -> None:
        """Remember a state, whole or not at all; an older one of its epoch is passed over.

        May be called from several threads. A full disk is told, and harms nothing else.
        """
        with self._saving:
            known = self.load()
            if known is None or known.epoch != state.epoch or _number(known) < _number(state):
                self._save(state)

    def _save(self, state: DesiredState) -> None:
        new = self._file.with_name(f"{self._file.name}.{os.getpid()}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as stream:
                stream.write(encode_state(state))
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(self._file)
        except OSError as error:
            _log.warning("the desired state cannot be kept", file=str(self._file), why=str(error))
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def _number(state: DesiredState) -> int:
    return state.generation or 0
