from hypothesis import given

from tests.unit.control.states import acks, desired_states
from worker.control.answers import Ack, encode_ack
from worker.control.documents import parse_ack, parse_state
from worker.control.messages import DesiredState, digest, encode_state


@given(desired_states())
def test_every_valid_state_is_read_as_it_was_written(state: DesiredState) -> None:
    read = parse_state(encode_state(state))
    assert read == state
    assert digest(read) == digest(state)


@given(acks())
def test_every_valid_answer_is_read_as_it_was_written(ack: Ack) -> None:
    assert parse_ack(encode_ack(ack)) == ack
