from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ChannelError
from worker.protocol.messages import (
    Bye,
    Done,
    Fault,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Outcomes,
    Profiled,
    Retry,
    Row,
    SetLimits,
    StartProfile,
    Stopped,
    Submit,
    Trouble,
    Warmed,
    decode,
    encode,
)
from worker.types import Limits, Reason

LIMITS = Limits(16, 1, 5.0, 1 << 26, 1 << 25, 50_000_000)
LIMITED = LIMITS._replace(
    thresholds=MappingProxyType({"label": 0.5, "mood": 0.25}), slo_ms=40.0, adaptive=True
)
ids = st.integers(0, 2**53)
text = st.text(max_size=20)
ms = st.floats(0, 1e6)
rows = st.builds(Row, ids, st.binary(max_size=50), st.booleans())
done = st.builds(Done, ids, ids, ids, ms, ms, ms, st.binary(max_size=50))
outcomes = st.builds(
    Outcomes,
    st.lists(done, max_size=4).map(tuple),
    st.lists(st.builds(Fault, ids, st.sampled_from(Reason), text), max_size=4).map(tuple),
    st.lists(st.builds(Retry, ids, text), max_size=4).map(tuple),
    ms,
    ms,
    st.integers(0, 64),
    st.integers(0, 4096),
)


def round_trip(message: Message) -> Message:
    header, *body = encode(message)
    return decode(bytes(header), memoryview(b"".join(body)))


@pytest.mark.parametrize(
    "message",
    [
        Load("/models/m/1", "ab" * 32, 2, LIMITS, 1 << 30, "cpu", {"a": "1"}, None),
        Loaded("cd", "CPU", "cpu", "fp32", False, 16, 4, 1.5, {"1": 2.0}, {"inputs": []}, True),
        LoadFailed("model", "no such input", "manifest.yaml", "inputs.x"),
        Load("/m", "ab", 2, LIMITED, 1 << 30, "cpu", {}, None, quiet=True),
        Load("/m", "ab", 2, LIMITS, 1, "cpu", {}, None, provider_options={"A": {"b": "1"}}),
        SetLimits(LIMITS),
        SetLimits(LIMITED),
        Warmed({"1": 2.0, "16": 7.5}),
        Trouble("oom", "CUDA failure 2: out of memory"),
        StartProfile(10.0, "engine m/1", "/data/profile/1.json", True),
        Profiled("no room"),
        Profiled(None),
        Bye(),
        Trouble("sticky", "CUDA failure 700: an illegal memory access was encountered"),
        Stopped(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert round_trip(message) == message
    assert type(round_trip(message)) is type(message)


@given(st.lists(rows, max_size=8).map(tuple), ms)
def test_a_group_of_records_comes_out_as_it_went_in(group: tuple[Row, ...], behind: float) -> None:
    assert round_trip(Submit(group, behind)) == Submit(group, behind)


@given(outcomes)
def test_outcomes_come_out_as_they_went_in(message: Outcomes) -> None:
    assert round_trip(message) == message


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"1",
        b'["unheard"]',
        b'["load", 1]',
        b'["submit"]',
        b'["submit", [[1]]]',
        b'["limits", [1, 2]]',
        b'["outcomes", [], [[1, "no.such-reason", ""]], [], 0, 0, 0]',
    ],
)
def test_what_is_not_of_the_protocol_is_a_channel_error(header: bytes) -> None:
    with pytest.raises(ChannelError, match="not of the protocol"):
        decode(header, memoryview(b""))
