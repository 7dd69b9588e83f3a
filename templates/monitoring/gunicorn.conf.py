"""How gunicorn runs the monitor: one process, whose threads share the window."""

import contextlib
import os
import socket
import struct

from gunicorn.http.message import Request
from gunicorn.workers.gthread import TConn, ThreadWorker

PATIENCE = 5  # seconds between two pieces of a request


class Worker(ThreadWorker):
    """Threads that do not wait for ever for a client that has stopped sending or reading."""

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a connection to a thread."""
        # The kernel's limit: gunicorn itself makes its sockets wait without one.
        patience = struct.pack("ll", PATIENCE, 0)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        super().enqueue_req(conn)

    def handle_error(
        self, req: Request | None, client: socket.socket, addr: object, exc: Exception
    ) -> None:
        """Answer what is no HTTP in one line, without gunicorn's page."""
        status = "400 Bad Request" if req is None else "500 Internal Server Error"
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        with contextlib.suppress(OSError):
            client.sendall(f"{head}Content-Length: {len(status) + 1}\r\n\r\n{status}\n".encode())


ADDRESS = os.environ.get("KTT_MONITOR_ADDRESS") or "127.0.0.1"  # it asks for no password
bind = f"{ADDRESS}:{os.environ.get('KTT_MONITOR_PORT') or '5001'}"
workers = 1  # the counters and the calculation are this process's
worker_class = Worker
threads = 32  # most of them for clients that are slow, or hold one open
timeout = 60
graceful_timeout = 10
keepalive = 15
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
accesslog = None
loglevel = "warning"
limit_request_line = 2048
limit_request_fields = 50
