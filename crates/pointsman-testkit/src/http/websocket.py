"""A server and a client of WebSocket: `server NAME PORT`, `client URL MESSAGE...`."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus


def value(text):
    """What a message stands for: `size:N` for so many bytes, `ping`, or itself."""
    return b"x" * int(text[5:]) if text.startswith("size:") else text


async def server(name, port):
    async def answer(connection):
        await connection.send(f"{name} {connection.request.path}")
        async for message in connection:
            if message == "close":
                await connection.close(4001, "as told")
            else:
                await connection.send(message)

    async with serve(answer, "127.0.0.1", int(port), max_size=None, compression=None):
        await asyncio.get_running_loop().create_future()


async def client(url, messages):
    said = {"status": 101, "answers": [], "code": None}
    try:
        async with connect(url, max_size=None, open_timeout=20, proxy=None, compression=None) as connection:
            said["greeting"] = await connection.recv()
            for message in messages:
                if message == "ping":
                    await (await connection.ping())
                    said["answers"].append("pong")
                    continue
                await connection.send(value(message))
                answer = await connection.recv()
                said["answers"].append(f"size:{len(answer)}" if isinstance(answer, bytes) else answer)
        said["code"] = connection.close_code
    except InvalidStatus as refused:
        said["status"] = refused.response.status_code
    except ConnectionClosed as closed:
        said["code"] = closed.rcvd.code if closed.rcvd else None
    print(json.dumps(said))


what, *rest = sys.argv[1:]
if what == "server":
    asyncio.run(server(*rest))
else:
    asyncio.run(client(rest[0], rest[1:]))
