"""The checker of the integration tests sees each thing that it is there to see."""

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
import pytest

from tests.broker import Published
from tests.ledger import hold

PARTITIONS = 2
DOOMED = {b"3": "image.type"}


class World(NamedTuple):
    """Eight records over two partitions, and what was published for them."""

    by_id: dict[str, Published]
    outputs: list[Published]
    letters: list[Published]


def world() -> World:
    by_id: dict[str, Published] = {}
    outputs, letters = [], []
    for number in range(8):
        partition, offset = number % PARTITIONS, number // PARTITIONS
        record = Published(partition, offset, 1, b"%d" % number, b"image", ())
        identity = f"in/{partition}/{offset}@1"
        by_id[identity] = record
        reason = DOOMED.get(b"%d" % number)
        outputs.append(_output(identity, record, reason))
        if reason is not None:
            headers = (("darkroom-reason", reason.encode()), ("darkroom-id", identity.encode()))
            letters.append(record._replace(headers=headers))
    return World(by_id, outputs, letters)


def _output(identity: str, record: Published, reason: str | None) -> Published:
    result: dict[str, Any] = {
        "id": identity,
        "status": "ok" if reason is None else "failed",
        "source": {"topic": "in", "partition": record.partition, "offset": record.offset},
        "predictions": {"digit": [{"label": "7", "score": 0.5}]} if reason is None else None,
    }
    if reason is not None:
        result["reason"] = reason
    return record._replace(value=orjson.dumps(result), key=record.key)


def _said(published: Published, **changes: Any) -> Published:
    return published._replace(value=orjson.dumps({**published.json, **changes}))


def _lose(made: World) -> None:
    del made.outputs[4]


def _invent(made: World) -> None:
    made.outputs.append(_said(made.outputs[4], id="in/0/99@1"))


def _swap(made: World) -> None:
    made.outputs[2], made.outputs[4] = made.outputs[4], made.outputs[2]


def _stray(made: World) -> None:
    made.outputs[4] = made.outputs[4]._replace(partition=1)


def _repeat_too_often(made: World) -> None:
    made.outputs.extend((made.outputs[0], made.outputs[1]))


def _repeat_otherwise(made: World) -> None:
    other = {"digit": [{"label": "7", "score": 0.5002}]}
    made.outputs.append(_said(made.outputs[0], predictions=other))


def _fail_a_good_one(made: World) -> None:
    made.outputs[4] = _said(made.outputs[4], status="failed", reason="image.type")


def _forget_a_letter(made: World) -> None:
    made.letters.clear()


def _bury_a_good_one(made: World) -> None:
    made.letters.append(made.letters[0]._replace(headers=(("darkroom-id", b"in/0/0@1"),)))


def _change_a_letter(made: World) -> None:
    made.letters[0] = made.letters[0]._replace(value=b"another image")


def test_what_is_whole_passes() -> None:
    made = world()
    assert hold(made.by_id, made.outputs, made.letters, doomed=DOOMED, repeats_max=0) == 0


def test_repeats_that_agree_pass_up_to_their_bound_and_are_counted() -> None:
    made = world()
    close = {"digit": [{"label": "7", "score": 0.50005}]}
    made.outputs.append(_said(made.outputs[0], predictions=close, age_ms=7.0))
    assert hold(made.by_id, made.outputs, made.letters, doomed=DOOMED, repeats_max=1) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        _lose,
        _invent,
        _swap,
        _stray,
        _repeat_too_often,
        _repeat_otherwise,
        _fail_a_good_one,
        _forget_a_letter,
        _bury_a_good_one,
        _change_a_letter,
    ],
)
def test_what_is_not_whole_is_seen(spoil: Callable[[World], None]) -> None:
    made = world()
    spoil(made)
    with pytest.raises(AssertionError):
        hold(made.by_id, made.outputs, made.letters, doomed=DOOMED, repeats_max=1)
