"""Print predictions as they come: python examples/read.py localhost:9092 predictions"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer


async def main(brokers: str, topic: str) -> None:
    earliest = {"bootstrap_servers": brokers, "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(topic, **earliest) as results:
        async for record in results:
            result = json.loads(record.value)
            answer = result["predictions"] if result["status"] == "ok" else result["reason"]
            print(record.key, result["status"], answer, flush=True)


if len(sys.argv) != 3:
    sys.exit(__doc__)
asyncio.run(main(*sys.argv[1:]))
