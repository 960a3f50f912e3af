"""Outcome -> what is published for it: a result, a dead letter, both, or neither. Pure."""

from worker.kafka.deadletter import encode_dead_letter
from worker.kafka.envelope import salvage
from worker.kafka.ledger import Entry, Outgoing
from worker.kafka.results import encode_result, record_bytes
from worker.kafka.topics import TopicFacts
from worker.types import Failed, Headers, Outcome, Predicted, Reason, Request, Ticket

_NO_HEADERS: Headers = ()
_OUR_HEADERS_BYTES = 4096
"""More than our own headers and the frame of a record take: names in them have 255 at most."""


class Outbox:
    """Knows the topics' limits and the settings that decide what is published."""

    def __init__(
        self,
        facts: TopicFacts,
        *,
        worker: str,
        omit_failures: bool,
        forward_headers: frozenset[str],
    ) -> None:
        self._facts = facts
        self._worker = worker
        self._omit_failures = omit_failures
        self._forward_headers = forward_headers

    def encode(
        self, entry: Entry, ticket: Ticket | None, outcome: Outcome, *, now_ms: int
    ) -> Outgoing:
        """Encode one outcome. A result that its topic cannot take becomes `result.too-large`."""
        record = entry.record
        assert record is not None
        request = entry.request or salvage(record, forward_headers=self._forward_headers)
        result = self._result(request, ticket, outcome, now_ms)
        if result is None:
            outcome = Failed(
                Reason.RESULT_TOO_LARGE,
                f"the result is larger than max.message.bytes of topic "
                f"{self._facts.output_topic!r}, {self._facts.output_max_bytes}: ask for fewer "
                "outputs, send a smaller key or smaller trace headers, or raise that limit",
            )
            result = self._smallest(request, ticket, outcome, now_ms)
        if isinstance(outcome, Predicted):
            return result
        letter = None
        if isinstance(outcome, Failed):
            letter = encode_dead_letter(
                record, outcome, worker=self._worker, max_bytes=self._facts.dead_letter_max_bytes
            )
        if self._omit_failures:
            return Outgoing(record.key, None, _NO_HEADERS, letter)
        return result._replace(dead_letter=letter)

    def _result(
        self, request: Request, ticket: Ticket | None, outcome: Outcome, now_ms: int
    ) -> Outgoing | None:
        """Return the result; None when its topic would not take it (which breaks a producer)."""
        key = request.record.key
        value, headers = encode_result(request, ticket, outcome, worker=self._worker, now_ms=now_ms)
        spare_bytes = self._facts.output_max_bytes - len(value) - len(key or b"")
        if spare_bytes >= _OUR_HEADERS_BYTES and not request.trace:
            return Outgoing(key, value, headers, None)  # by far: nothing to reckon
        if record_bytes(key, value, headers) > self._facts.output_max_bytes:
            return None
        return Outgoing(key, value, headers, None)

    def _smallest(
        self, request: Request, ticket: Ticket | None, outcome: Failed, now_ms: int
    ) -> Outgoing:
        """Say that there is no result, without what the producer sent along if need be."""
        bare = request._replace(trace=_NO_HEADERS)
        keyless = bare._replace(record=bare.record._replace(key=None))
        for smaller in (request, bare, keyless):
            result = self._result(smaller, ticket, outcome, now_ms)
            if result is not None:
                return result
        return Outgoing(None, None, _NO_HEADERS, None)
