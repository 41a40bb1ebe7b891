"""Kafka -> map -> Kafka, at least once, as asyncio allows it at its best.

Records are taken in large groups, mapped without an await in between, and handed to the producer one after the other
without waiting for an answer. When all of a group are acknowledged, its offsets are committed. The key decides the
partition. It runs until it is ended by SIGTERM.

With --batches the script fills the producer's batches itself: one future for each batch instead of one for each record.
It then also has to choose the partitions itself, and takes those of the source: right only as long as both topics have
equally many partitions. It is here to know what the last trick would bring.
"""

import argparse
import asyncio
import signal

import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


def transform(value):
    """The reference map. None drops the record."""
    record = orjson.loads(value)
    if record["level"] == "debug":
        return None
    del record["trace"]
    record["env"] = "prod"
    record["slow"] = record["latency_us"] > 50_000
    record["service"] = record["service"].upper()
    return orjson.dumps(record)


async def send_each(producer, topic, _partition, records):
    """One send for each record; returns the futures of the answers."""
    sent = []
    for record in records:
        value = transform(record.value)
        if value is not None:
            sent.append(await producer.send(topic, value, key=record.key, timestamp_ms=record.timestamp))
    return sent


async def send_batches(producer, topic, partition, records):
    """Batches filled by hand; returns the futures of the answers."""
    sent = []
    batch = producer.create_batch()
    for record in records:
        value = transform(record.value)
        if value is None:
            continue
        if batch.append(key=record.key, value=value, timestamp=record.timestamp) is None:
            sent.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(key=record.key, value=value, timestamp=record.timestamp)
    if batch.record_count():
        sent.append(await producer.send_batch(batch, topic, partition=partition))
    return sent


async def run(arguments):
    consumer = AIOKafkaConsumer(
        arguments.source,
        bootstrap_servers=arguments.brokers,
        group_id=arguments.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=50 * 1024 * 1024,
        max_partition_fetch_bytes=arguments.fetch_bytes,
        check_crcs=False,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=arguments.brokers,
        acks="all",
        linger_ms=5,
        max_batch_size=arguments.batch_bytes,
        max_request_size=4 * arguments.batch_bytes,
    )
    await producer.start()
    await consumer.start()
    send = send_batches if arguments.batches else send_each
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        while not stop.is_set():
            groups = await consumer.getmany(timeout_ms=200, max_records=arguments.max_records)
            sent = []
            for partition, records in groups.items():
                sent += await send(producer, arguments.sink, partition.partition, records)
            if groups:
                await producer.flush()
                for answer in sent:
                    answer.result()
                await consumer.commit()
    finally:
        await consumer.stop()
        await producer.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--sink", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--max-records", type=int, default=20_000)
    parser.add_argument("--batch-bytes", type=int, default=256 * 1024)
    parser.add_argument("--fetch-bytes", type=int, default=1024 * 1024)
    parser.add_argument("--batches", action="store_true")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
