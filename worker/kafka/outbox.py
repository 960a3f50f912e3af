"""Outcome -> what is published for it: a result, a dead letter, both, or neither. Pure."""

from worker.kafka.deadletter import encode_dead_letter
from worker.kafka.ledger import Entry, Outgoing
from worker.kafka.results import encode_result, record_bytes
from worker.kafka.topics import TopicFacts
from worker.types import Failed, Headers, Outcome, Predicted, Reason, Record, Request, Ticket

_NO_HEADERS: Headers = ()


class Outbox:
    """Knows the topics' limits and the settings that decide what is published."""

    def __init__(self, facts: TopicFacts, *, worker: str, omit_failures: bool) -> None:
        self._facts = facts
        self._worker = worker
        self._omit_failures = omit_failures

    def encode(
        self, entry: Entry, ticket: Ticket | None, outcome: Outcome, *, now_ms: int
    ) -> Outgoing:
        """Encode one outcome. A result that its topic cannot take becomes `result.too-large`."""
        record = entry.record
        assert record is not None
        request = entry.request or _unread(record)
        value, headers = self._result(request, ticket, outcome, now_ms)
        size = record_bytes(record.key, value, headers)
        if size > self._facts.output_max_bytes and isinstance(outcome, Predicted):
            outcome = Failed(
                Reason.RESULT_TOO_LARGE,
                f"the result takes {size} bytes, the topic {self._facts.output_topic!r} at most "
                f"{self._facts.output_max_bytes}: ask for fewer outputs or raise its "
                "max.message.bytes",
            )
            value, headers = self._result(request, ticket, outcome, now_ms)
        letter = None
        if isinstance(outcome, Failed):
            letter = encode_dead_letter(
                record, outcome, worker=self._worker, max_bytes=self._facts.dead_letter_max_bytes
            )
        if self._omit_failures and not isinstance(outcome, Predicted):
            return Outgoing(record.key, None, _NO_HEADERS, letter)
        return Outgoing(record.key, value, headers, letter)

    def _result(
        self, request: Request, ticket: Ticket | None, outcome: Outcome, now_ms: int
    ) -> tuple[bytes, Headers]:
        return encode_result(request, ticket, outcome, worker=self._worker, now_ms=now_ms)


def _unread(record: Record) -> Request:
    """Stand in for the request of a record that could not be understood."""
    return Request(record, b"", None, None, {}, None, None, None, _NO_HEADERS)
