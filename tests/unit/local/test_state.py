from pathlib import Path

import pytest

from worker.errors import CommandError
from worker.local.state import Part, State, read_state, write_state

STATE = State(
    {"broker-1": "127.0.0.1:20000"},
    (
        Part("broker-1", "/x/one/broker-1", "/x/one/broker-1/server.properties", 1, 2, 3, 77),
        Part("redis", "/x/redis", "/x/redis", 4),
    ),
)


def test_a_state_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_state(tmp_path / "stack.json", STATE)

    assert read_state(tmp_path / "stack.json") == STATE
    assert [file.name for file in tmp_path.iterdir()] == ["stack.json"]


def test_where_nothing_was_written_there_is_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path / "stack.json") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"parts": 3}', '{"parts": [{"name": "redis"}]}', '{"parts": []}']
)
def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)

    with pytest.raises(CommandError, match=r"stack\.json is damaged .* then delete the file"):
        read_state(tmp_path / "stack.json")


def test_a_part_is_found_by_its_name() -> None:
    assert STATE.part("redis").port == 4
    assert STATE.part("broker-1").number == 1
    with pytest.raises(CommandError, match="no part 'broker-2': it has broker-1, redis"):
        STATE.part("broker-2")


def test_a_process_id_is_changed_for_one_part_alone() -> None:
    changed = STATE.with_pid("redis", 5)

    assert [part.pid for part in changed.parts] == [77, 5]
    assert [part.pid for part in STATE.parts] == [77, 0]
