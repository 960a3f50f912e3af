"""The loop that everybody writes first: one record at a time, everything awaited, all defaults."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.loops.spec import LoopSpec, from_arguments, result
from benchmarks.recipe import ByHand


async def main(spec: LoopSpec) -> None:
    model = ByHand(spec.recipe, careful=False)
    consumer = AIOKafkaConsumer(
        spec.input,
        bootstrap_servers=spec.bootstrap,
        group_id=spec.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    producer = AIOKafkaProducer(bootstrap_servers=spec.bootstrap)
    await consumer.start()
    await producer.start()
    async for record in consumer:
        (best,) = model.serve([record.value])
        value = result(spec.recipe.head, record.partition, record.offset, best)
        await producer.send_and_wait(spec.output, value, key=record.key, partition=record.partition)
        await consumer.commit()


if __name__ == "__main__":
    asyncio.run(main(from_arguments()))
