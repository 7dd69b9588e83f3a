"""How gunicorn runs the monitor: one process, whose threads share the window."""

import asyncio
import os
import socket
import sys

from gunicorn.workers import base

from monitor_front import PIECE, Front
from monitor_settings import listen_address
from monitor_tree import SetupError


class Worker(base.Worker):
    """Serves the application behind a front that waits for clients without a thread."""

    def run(self) -> None:
        """Serve until gunicorn says that it is enough."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        front = Front(self.wsgi)
        servers = [await self._listen(front, held.sock) for held in self.sockets]
        while self.alive and self.ppid == os.getppid():
            self.notify()
            await asyncio.sleep(0.2)
        for server in servers:
            server.close()
        await front.finish(self.cfg.graceful_timeout)

    async def _listen(self, front: Front, held: socket.socket) -> asyncio.Server:
        # So many are let in before those inside are looked at again; more may wait outside.
        server = await asyncio.start_server(front.serve, sock=held, limit=PIECE, backlog=100)
        held.listen(self.cfg.backlog)
        return server


try:
    bind = listen_address()
except SetupError as error:
    sys.exit(f"Error: {error}")
workers = 1  # the counters and the calculation are this process's
worker_class = Worker
timeout = 60
graceful_timeout = 10
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
accesslog = None
loglevel = "warning"
