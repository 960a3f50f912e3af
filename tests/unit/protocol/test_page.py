import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from worker.protocol.page import Page, Phase


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page.make(lanes=3, max_ids=4)
    yield page
    page.close()


def test_a_new_page_says_that_every_lane_is_idle(page: Page) -> None:
    assert [(slot.phase, slot.ids) for slot in page.read()] == [(Phase.IDLE, ())] * 3


def test_a_lane_says_what_it_holds_and_since_when_without_touching_its_neighbours(
    page: Page,
) -> None:
    before_s = time.monotonic()
    page.begin(1, Phase.RUN, [7, 2**63])
    idle, busy, other = page.read()
    assert (busy.phase, busy.ids) == (Phase.RUN, (7, 2**63))
    assert before_s <= busy.since_s <= time.monotonic()
    assert idle.phase is other.phase is Phase.IDLE
    page.idle(1)
    assert page.read()[1] == (Phase.IDLE, 0.0, ())


def test_more_ids_than_fit_are_cut_and_stay_in_their_slot(page: Page) -> None:
    page.begin(0, Phase.RUN, range(9))
    assert page.read()[0].ids == (0, 1, 2, 3)
    assert page.read()[1].ids == ()


def test_what_a_killed_process_was_doing_can_still_be_read(page: Page) -> None:
    program = (
        "import os, signal, sys\n"
        "from worker.protocol.page import Page, Phase\n"
        "page = Page(int(sys.argv[1]), lanes=3, max_ids=4)\n"
        "page.begin(2, Phase.DECODE, [41])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    os.set_inheritable(page.descriptor, True)
    ended = subprocess.run(
        [sys.executable, "-c", program, str(page.descriptor)], close_fds=False, check=False
    )
    assert ended.returncode == -9
    assert page.read()[2][::2] == (Phase.DECODE, (41,))


def test_a_lane_that_is_busy_with_new_work_never_reads_as_an_old_one(page: Page) -> None:
    program = (
        "import sys\n"
        "from worker.protocol.page import Page, Phase\n"
        "page = Page(int(sys.argv[1]), lanes=3, max_ids=4)\n"
        "print(flush=True)\n"
        "while True:\n"
        "    page.begin(0, Phase.DECODE, [41])\n"
        "    page.idle(0)\n"
    )
    os.set_inheritable(page.descriptor, True)
    command = [sys.executable, "-c", program, str(page.descriptor)]
    with subprocess.Popen(command, close_fds=False, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        began_s = time.monotonic()
        busy = [slot for _ in range(100_000) for slot in page.read() if slot.phase]
        writer.kill()
    assert busy
    assert [slot for slot in busy if slot.since_s < began_s - 1 or slot.ids != (41,)] == []
