"""Records that kill engines, engines that fail at everything, workers that die at a bad moment."""

import pytest

from tests.broker import Topics, read_all
from tests.integration.traffic import send_digits, wait_served
from tests.ledger import account
from tests.workers import Crew

pytestmark = pytest.mark.kafka

IN_FLIGHT = 128
KILLS, HANGS, RAISES, STOPS = b"it-kills", b"it-hangs", b"it-raises", b"it-stops"


def test_records_that_kill_hang_or_break_a_run_are_dead_letters_and_their_mates_are_served(
    topics: Topics, crew: Crew
) -> None:
    feed = send_digits(topics, 120, {17: KILLS, 50: HANGS, 83: RAISES})
    failpoint = ";".join(
        f"{point}={action}@{mark.decode()}"
        for point, action, mark in (
            ("before_run", "kill", KILLS),
            ("after_decode", "hang", HANGS),
            ("after_run", "raise", RAISES),
        )
    )

    worker = crew.start(topics, {"engine": {"watchdog_s": 1.0}}, failpoint=failpoint)

    wait_served(crew, topics)
    doomed = {b"%06d" % number: "record.poison" for number in (17, 50, 83)}
    account(topics, feed.sent, doomed=doomed)
    worker.wait_ready()
    assert worker.ask("/livez")[0] == 200
    assert worker.stop() == 0


@pytest.mark.parametrize("action", ["kill", pytest.param("raise", marks=pytest.mark.long)])
def test_an_engine_that_fails_at_everything_makes_no_dead_letter(
    topics: Topics, crew: Crew, action: str
) -> None:
    settings = {"shutdown": {"drain_deadline_s": 1}}
    worker = crew.start(topics, settings, failpoint=f"before_run={action}")
    worker.wait_ready()

    feed = send_digits(topics, 60)

    worker.until(lambda: len(worker.events("engine.ended")) >= 3, "three engines ended")
    worker.until(lambda: "models" in worker.unready_because(), "unready")
    cause = "SIGKILL" if action == "kill" else "it fails at every record"
    assert cause in worker.unready_because()["models"]
    assert worker.ask("/livez")[0] == 200, "a restart of the worker would not help"
    assert read_all(topics, topics.dead) == []
    assert read_all(topics, topics.output) == []
    assert worker.stop() == 7, "what is in flight was not finished, and will be read again"

    crew.start(topics)
    wait_served(crew, topics)
    account(topics, feed.sent, doomed={})


def test_a_worker_that_dies_at_a_bad_moment_repeats_only_what_was_in_flight(
    topics: Topics, crew: Crew
) -> None:
    feed = send_digits(topics, 600, {300: STOPS})
    settings = {"limits": {"in_flight_records": IN_FLIGHT}, "kafka": {"session_timeout_ms": 1000}}

    for failpoint in (
        "before_commit=kill",
        "after_send=kill@000060",
        f"after_fetch=kill@{STOPS.decode()}",
    ):
        worker = crew.start(topics, settings, failpoint=failpoint)
        assert worker.died() == -9

    crew.start(topics, settings)
    wait_served(crew, topics)
    done = account(topics, feed.sent, doomed={}, repeats_max=3 * IN_FLIGHT)
    assert done.repeats > 0, "two of them died between publishing and committing"
