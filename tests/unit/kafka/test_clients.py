"""aiokafka's clients while no broker can be reached."""

import asyncio
import time

from aiokafka.client import AIOKafkaClient

from worker.kafka.clients import calm


async def test_a_client_that_is_told_of_no_broker_does_not_spin() -> None:
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    calm(client)
    asking = asyncio.create_task(client._md_synchronizer())
    began_s = time.monotonic()
    for _ in range(3):
        await client.force_metadata_update()
    assert time.monotonic() - began_s >= 0.3
    asking.cancel()
    await asyncio.wait((asking,))
    await client.close()
