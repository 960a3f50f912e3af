"""Publish pictures as they are: python examples/produce.py localhost:9092 images PICTURE..."""

import asyncio
import sys
from pathlib import Path

from aiokafka import AIOKafkaProducer


async def main(brokers: str, topic: str, pictures: dict[str, bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=brokers, max_request_size=2**24) as producer:
        for name, picture in pictures.items():
            await producer.send_and_wait(topic, picture, key=name.encode())


if len(sys.argv) < 4:
    sys.exit(__doc__)
asyncio.run(main(sys.argv[1], sys.argv[2], {x: Path(x).read_bytes() for x in sys.argv[3:]}))
