"""file -> map -> file, as asyncio allows it at its best.

Big blocks are read and written off the loop, one ahead and one behind, while the loop maps the lines of a block without
an await in between.
"""

import argparse
import asyncio
import os

import orjson
import uvloop

BLOCK = 1024 * 1024


def transform_lines(lines):
    """The reference map over a batch of lines, as one block to be written."""
    loads, dumps, newline = orjson.loads, orjson.dumps, orjson.OPT_APPEND_NEWLINE
    mapped = []
    append = mapped.append
    for line in lines:
        record = loads(line)
        if record["level"] == "debug":
            continue
        del record["trace"]
        record["env"] = "prod"
        record["slow"] = record["latency_us"] > 50_000
        record["service"] = record["service"].upper()
        append(dumps(record, option=newline))
    return b"".join(mapped)


async def run(arguments):
    in_thread = asyncio.to_thread
    with open(arguments.source, "rb", buffering=0) as source, open(arguments.sink, "wb", buffering=0) as sink:
        read_ahead = asyncio.create_task(in_thread(source.read, BLOCK))
        write_behind = None
        rest = b""
        while block := await read_ahead:
            read_ahead = asyncio.create_task(in_thread(source.read, BLOCK))
            end = block.rfind(b"\n") + 1
            if end == 0:
                rest += block
                continue
            lines = (rest + block[:end]).splitlines()
            rest = block[end:]
            mapped = transform_lines(lines)
            if write_behind is not None:
                await write_behind
            write_behind = asyncio.create_task(in_thread(sink.write, mapped))
        if write_behind is not None:
            await write_behind
        if rest:
            await in_thread(sink.write, transform_lines([rest]))
        await in_thread(os.fsync, sink.fileno())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--sink", required=True)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
