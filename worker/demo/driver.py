"""The demo: real digits through a real Kafka and a real worker process, and what came of each.

Nothing is special about its worker: it serves the demo's own models, in topics and a fleet of its
own, and everything is read back from Kafka. At half of the records the better version is activated,
as `darkroom fleet activate digits 2 --wait` does it.
"""

import asyncio
import contextlib
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import orjson

from worker.config_sections import ControlSettings, KafkaSettings, ModelsSettings
from worker.control import edits
from worker.control.catalogue import Catalogue
from worker.control.channel import Channel
from worker.control.operator import Operator
from worker.control.progress import Outcome
from worker.demo.account import Report, Result, Sent, Swap, account, is_right, messages
from worker.demo.process import LOG_NAME, worker_process
from worker.errors import CommandError, DarkroomError
from worker.kafka.publish import Message, Publisher
from worker.kafka.tail import Published, tail

MODEL, BEFORE, AFTER = "digits", "1", "2"
_QUIET_DEADLINE_S = 30.0
_SWAP_DEADLINE_S = 60.0
_DURING_SHARE = 0.2
"""Records that are sent while the version changes, at most; the others wait for its end."""
_DURING_PER_S = 200.0
_LATELY = 300
_TOLD_EVERY = 50


class Watcher(Protocol):
    """Who is told how the demo gets on."""

    def say(self, line: str) -> None: ...

    def sent(self, count: int) -> None: ...

    def came(self, count: int, right_lately: float) -> None:
        """Tell how many results came, and the share of digits read right of the last few."""


class Commander:
    """The operator of the demo's fleet."""

    def __init__(self, channel: Channel, fleet: str, models: ModelsSettings) -> None:
        self._catalogue = Catalogue(models)
        first = partial(self._catalogue.first, fleet)
        self._operator = Operator(channel, by="the demo", first=first)

    async def activate(self, version: str) -> int:
        """Do as `darkroom fleet activate --wait`; return the generation. Raises CommandError."""
        changed = await self._operator.change(
            lambda state, _: edits.activate(
                state, MODEL, version, sha256=self._catalogue.digest(state, MODEL, version, None)
            ),
            f"activate {MODEL} {version}",
        )
        last = await self._operator.wait(changed, deadline_s=_SWAP_DEADLINE_S)
        if last.outcome is not Outcome.CONVERGED:
            raise CommandError(
                f"{MODEL}/{version} was not activated: {last.outcome}: {'; '.join(last.reasons)}"
            )
        assert changed.after.generation is not None
        return changed.after.generation


async def run_demo(
    kafka: KafkaSettings, redis_url: str, folder: Path, *, count: int, watcher: Watcher
) -> Report:
    """Send `count` records through one worker and account for every one of them.

    The topics of `kafka` exist and are empty, no fleet is called as its group is; `folder` takes
    the worker's settings, data and log. Raises CommandError when the worker fails, does not take
    the better version, or results stop coming.
    """
    wanted = messages(count)
    control = ControlSettings(url=redis_url, fleet=kafka.group_id)
    models = ModelsSettings(default=MODEL, active={MODEL: BEFORE})
    async with (
        worker_process(kafka, control, models, folder) as process,
        contextlib.aclosing(Channel(control)) as channel,
    ):
        watcher.say(f"one worker serves {MODEL}/{BEFORE}; its log: {folder / LOG_NAME}")
        commander = Commander(channel, control.fleet, models)
        began_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_follow(kafka, wanted, process, watcher))
                sending = group.create_task(_send(kafka, wanted, commander, watcher, group))
        except* DarkroomError as failed:
            raise failed.exceptions[0] from None
        seconds = time.monotonic() - began_s
    published = tail(kafka, kafka.output_topic, from_beginning=True, follow=False)
    results = [_result(result) async for result in published]
    published = tail(kafka, kafka.dead_letter_topic, from_beginning=True, follow=False)
    letters = [letter async for letter in published]
    return account(wanted, results, len(letters), sending.result(), seconds=seconds)


async def _send(
    kafka: KafkaSettings,
    wanted: Sequence[Sent],
    commander: Commander,
    watcher: Watcher,
    group: asyncio.TaskGroup,
) -> Swap:
    """Send half of the records, change the version while some more come, then send the rest."""
    half = len(wanted) // 2
    async with Publisher(kafka, kafka.input_topics[0]) as publisher:

        async def put(number: int) -> None:
            await publisher.send(Message(wanted[number].key.encode(), wanted[number].value, ()))
            if (number + 1) % _TOLD_EVERY == 0 or number + 1 == len(wanted):
                watcher.sent(number + 1)

        for number in range(half):
            await put(number)
        watcher.say(f"darkroom fleet activate {MODEL} {AFTER} --wait")
        began_s = time.monotonic()
        activating = group.create_task(commander.activate(AFTER))
        following = half
        while not activating.done() and following < half + int(len(wanted) * _DURING_SHARE):
            await put(following)
            following += 1
            await asyncio.sleep(1 / _DURING_PER_S)
        generation = await activating
        seconds = time.monotonic() - began_s
        watcher.say(f"every worker serves {MODEL}/{AFTER} by generation {generation}")
        for number in range(following, len(wanted)):
            await put(number)
    return Swap(MODEL, BEFORE, AFTER, generation, round(seconds, 3), wanted[following].key)


async def _follow(
    kafka: KafkaSettings,
    wanted: Sequence[Sent],
    process: subprocess.Popen[bytes],
    watcher: Watcher,
) -> None:
    """Read results, and tell of them, until there is one for every record."""
    labels = {sent.key: sent.label for sent in wanted}
    missing = set(labels)
    lately: deque[bool] = deque(maxlen=_LATELY)
    count = 0
    async with contextlib.aclosing(
        tail(kafka, kafka.output_topic, from_beginning=True, follow=True)
    ) as reader:
        while missing:
            try:
                async with asyncio.timeout(_QUIET_DEADLINE_S):
                    result = _result(await anext(reader))
            except TimeoutError:
                raise CommandError(
                    f"{len(missing)} results are missing and none came for "
                    f"{_QUIET_DEADLINE_S:g} s (worker: exit code {process.poll()})"
                ) from None
            count += 1
            missing.discard(result["key"])
            if result["status"] == "ok":
                lately.append(is_right(result, labels))
            if lately and (count % _TOLD_EVERY == 0 or not missing):
                watcher.came(count, sum(lately) / len(lately))


def _result(published: Published) -> Result:
    return {**orjson.loads(published.value or b"{}"), "key": (published.key or b"").decode()}
