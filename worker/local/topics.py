"""Creates topics, and waits until every partition can really be used.

The one place outside kafka/ that talks to brokers.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from worker.errors import CommandError
from worker.local.spec import Topic

ATTEMPT_S = 5.0
PAUSE_S = 0.05

# A broker that is still starting refuses connections: our business, not the user's terminal's.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


def settle(
    bootstrap: str,
    topics: Iterable[Topic],
    *,
    brokers: frozenset[int],
    deadline_s: float,
    check: Callable[[], None],
) -> None:
    """Create those `topics` that do not exist, then wait until the cluster is whole.

    Whole: it names all `brokers`, every partition of every topic has a leader, and those of its
    replicas that are on `brokers` are in sync. `check` is called again and again while waiting;
    what it raises ends the waiting. Blocks; may be called from a thread that runs an event loop.

    Raises CommandError when a topic is refused or the deadline passes.
    """
    _run(_settle(bootstrap, tuple(topics), brokers, time.monotonic() + deadline_s, check))


async def _settle(
    bootstrap: str,
    topics: tuple[Topic, ...],
    brokers: frozenset[int],
    end_s: float,
    check: Callable[[], None],
) -> None:
    missing = "no answer"
    while time.monotonic() < end_s:
        check()
        try:
            async with asyncio.timeout(ATTEMPT_S):
                missing = await _attempt(bootstrap, topics, brokers)
        except (KafkaError, OSError, TimeoutError, AttributeError) as error:
            # AttributeError: aiokafka 0.14 asks the controller's id while there is no controller.
            missing = repr(error)
        if not missing:
            return
        await asyncio.sleep(PAUSE_S)
    raise CommandError(f"Kafka at {bootstrap} is not usable: {missing}")


async def _attempt(bootstrap: str, topics: tuple[Topic, ...], brokers: frozenset[int]) -> str:
    """Say what is still missing; empty when nothing is."""
    admin = AIOKafkaAdminClient(
        bootstrap_servers=bootstrap, request_timeout_ms=int(ATTEMPT_S * 1000)
    )
    try:
        await admin.start()
        there = {broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]}
        if not brokers <= there:
            return f"brokers {sorted(brokers - there)} have not joined"
        await _create(admin, topics, copies=len(there))
        described: dict[str, Any] = {each["topic"]: each for each in await admin.describe_topics()}
        absent = [topic.name for topic in topics if topic.name not in described]
        if absent:
            return f"topics {absent} are not there yet"
        return "".join(_unready(topic, brokers) for topic in described.values())
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, topics: tuple[Topic, ...], *, copies: int) -> None:
    existing = set(await admin.list_topics())
    new = [
        NewTopic(topic.name, topic.partitions, copies, topic_configs=dict(topic.config))
        for topic in topics
        if topic.name not in existing
    ]
    if not new:
        return
    answer = (await admin.create_topics(new)).to_object()
    for each in answer["topic_errors"]:
        error = for_code(each["error_code"])
        if error.errno == 0 or error.__name__ == "TopicAlreadyExistsError" or error.retriable:
            continue
        raise CommandError(
            f"topic {each['topic']!r} is refused: {error.__name__} {each['error_message'] or ''}"
        )


def _unready(topic: dict[str, Any], brokers: frozenset[int]) -> str:
    for partition in topic["partitions"]:
        late = (set(partition["replicas"]) & brokers) - set(partition["isr"])
        if partition["leader"] == -1 or late:
            return f"{topic['topic']}/{partition['partition']} has no leader or late {late}; "
    return ""


def _run(work: Coroutine[Any, Any, None]) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="topics") as pool:
        pool.submit(asyncio.run, work).result()
