import threading

import numpy as np

from worker.engine.rows import Place, Rows


def fill(rows: Rows, *values: int) -> list[Place]:
    places = []
    for value in values:
        place = rows.claim()
        place.row[:] = value
        places.append(place)
    return places


def test_rows_side_by_side_run_where_they_lie() -> None:
    rows = Rows((2,), np.float32, cap=4)
    places = fill(rows, 1, 2, 3)
    batch = rows.gather(places)
    assert np.shares_memory(batch, places[0].slab.array)
    assert batch.tolist() == [[1, 1], [2, 2], [3, 3]]


def test_a_row_still_being_written_when_its_slab_runs_joins_a_later_batch() -> None:
    rows = Rows((1,), np.float32, cap=4)
    first, writing, last = fill(rows, 1, 0, 3)
    batch = rows.gather([first, last])
    assert batch.tolist() == [[1], [3]]
    writing.row[:] = 2
    [fresh] = fill(rows, 4)
    assert rows.gather([writing, fresh]).tolist() == [[2], [4]]


def test_a_slab_is_filled_again_only_when_none_of_its_rows_is_in_use() -> None:
    rows = Rows((1,), np.float32, cap=2)
    one, two = fill(rows, 1, 2)
    rows.gather([one])
    rows.release([one])
    [three] = fill(rows, 3)
    assert three.slab is not one.slab
    rows.gather([two])
    rows.release([two])
    fill(rows, 4)
    [again] = fill(rows, 5)
    assert again.slab is one.slab


def test_a_steady_stream_needs_no_more_slabs_than_are_in_use() -> None:
    rows = Rows((1,), np.float32, cap=4)
    slabs = set()
    for _ in range(100):
        places = fill(rows, 1, 2, 3)
        slabs.add(id(places[0].slab.array))
        rows.gather(places)
        rows.release(places)
    assert len(slabs) == 1


def test_a_new_cap_replaces_slabs_as_they_come_free() -> None:
    rows = Rows((1,), np.float32, cap=2)
    small = fill(rows, 1, 2)
    rows.cap = 3
    rows.gather(small)
    rows.release(small)
    large = fill(rows, 1, 2, 3)
    assert np.shares_memory(rows.gather(large), large[0].slab.array)


def test_lanes_that_claim_at_once_never_share_a_row() -> None:
    rows = Rows((1,), np.int64, cap=16)
    kept: list[list[Place]] = [[] for _ in range(4)]

    def lane(number: int) -> None:
        for n in range(200):
            place = rows.claim()
            place.row[:] = number * 1000 + n
            kept[number].append(place)

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(4)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    for number, places in enumerate(kept):
        assert [int(place.row[0]) for place in places] == [number * 1000 + n for n in range(200)]
