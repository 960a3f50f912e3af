"""The error tree, grouped by what must be done about it (architecture: who is at fault decides).

DarkroomError
├── SettingsError          the operator's settings: all problems in one message          exit 2
├── ModelError             a model, its manifest or its files: refused, never served     exit 3
├── DeviceError            the required device is absent or lost                         exit 4
├── BrokerRefused          the brokers answer and refuse us                              exit 5
├── BrokerUnavailable      the brokers do not answer: tried again, or given up on        exit 7
├── ControlUnavailable     Redis does not answer (or refuses us): tried again            exit 7
├── StateError             a desired state, or what else is on the control channel:
│                          refused, what was served before goes on
├── RecordFault            one record, by its own fault: failed + dead letter
├── RecordSkipped          one record, by the moment's fault: skipped, can be redriven
├── EngineFault            an engine died, hung or failed at everything: respawn, run again
├── ChannelError           the other side of an engine channel broke the protocol
└── CommandError           a command of the command line cannot do what was asked        exit 1
"""

from worker.types import Reason, SkipReason


class DarkroomError(Exception):
    """Base of every error that Darkroom raises on purpose; its text is the whole message."""

    exit_code = 1


class SettingsError(DarkroomError):
    """Settings that cannot be used. The text names every problem, one a line."""

    exit_code = 2


class ModelError(DarkroomError):
    """A model that must not be served. The text names the file and, where it has one, the field."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        field: str | None = None,
        code: str = "model.invalid",
    ) -> None:
        where = ": ".join(part for part in (file, field) if part)
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.file = file
        self.field = field
        self.code = code
        """What an acknowledgement calls it: `model.absent`, `headroom`, ... (`control/answers`)."""


class DeviceError(DarkroomError):
    """The device that the settings require is absent, unusable or lost."""

    exit_code = 4


class BrokerRefused(DarkroomError):  # noqa: N818 - the name is the whole sentence
    """The brokers answered and refused: authentication, authorisation, an absent topic."""

    exit_code = 5


class BrokerUnavailable(DarkroomError):  # noqa: N818 - the name is the whole sentence
    """No broker answered inside the deadline."""

    exit_code = 7


class ControlUnavailable(DarkroomError):  # noqa: N818 - the name is the whole sentence
    """Redis did not answer inside the deadline, or refused us; the text says which."""

    exit_code = 7


class StateError(DarkroomError):
    """What is on the control channel cannot be used; the text names every field that is wrong."""

    def __init__(self, message: str, *, code: str = "state.invalid") -> None:
        super().__init__(message)
        self.code = code
        """What an acknowledgement calls it (`control/answers.Code`)."""


class RecordFault(DarkroomError):  # noqa: N818 - a fault, in the words of the architecture
    """A record that cannot be served, by its own fault: a failed result and a dead letter."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RecordSkipped(DarkroomError):  # noqa: N818 - a skip is no error of the record
    """A record that is not served now, by the moment's fault; it can be redriven."""

    def __init__(self, reason: SkipReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EngineFault(DarkroomError):  # noqa: N818 - a fault, in the words of the architecture
    """An engine died, hung, or failed at everything it was given."""


class ChannelError(DarkroomError):
    """The other side of an engine channel sent what the protocol does not allow."""


class CommandError(DarkroomError):
    """A command that cannot do what was asked of it; the text says why and what to do."""
