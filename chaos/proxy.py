"""A TCP proxy that can go silent: its connections stay open, and nothing passes through them any more.

So it is for both sides when a cable is cut, a firewall forgets a connection, or a machine loses its power: no
FIN and no reset tells them.
"""

import asyncio
import contextlib
import threading


class Proxy:
    """Forwards connections from a port of 127.0.0.1 to another one, in a thread of its own."""

    def __init__(self, port: int, target: int):
        self.port, self.target = port, target
        self._is_silent = False
        self._cuts = 0          # a connection that was made before the last one is silent for ever
        self._connections = set()       # or else those that are silent would be collected, and closed
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)
        self._thread.start()
        self._started.wait(20)

    def go_silent(self) -> None:
        self._is_silent, self._cuts = True, self._cuts + 1

    def recover(self) -> None:
        """Forward new connections; nobody ever tells the old ones."""
        self._is_silent = False

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join(20)

    async def _serve(self):
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self._started.set()
        await self._closed.wait()
        server.close()
        connections = list(self._connections)
        for each in connections:
            each.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader, writer):
        self._connections.add(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError):       # by close()
            await self._forward(reader, writer)
        self._connections.discard(asyncio.current_task())

    async def _forward(self, reader, writer):
        if self._is_silent:
            await self._stay_silent()
        cuts = self._cuts
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        there = self._pump(cuts, reader, other_writer)
        back = self._pump(cuts, other_reader, writer)
        await asyncio.gather(there, back)

    async def _pump(self, cuts, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if cuts < self._cuts:
                    await self._stay_silent()
                writer.write(data)
                await writer.drain()
        if cuts < self._cuts:
            await self._stay_silent()
        writer.close()

    @staticmethod
    async def _stay_silent():
        await asyncio.Event().wait()
