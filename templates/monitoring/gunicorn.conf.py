"""How gunicorn runs the monitor: one process, whose threads share the window."""

import os

from gunicorn.workers.gthread import TConn, ThreadWorker

PATIENCE = 15  # seconds between two pieces of a request


class Worker(ThreadWorker):
    """Threads that do not wait for ever for a client that has stopped sending."""

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a connection to a thread."""
        conn.sock.settimeout(PATIENCE)
        super().enqueue_req(conn)


bind = f"0.0.0.0:{os.environ.get('KTT_MONITOR_PORT') or '5001'}"
workers = 1  # the counters and the calculation are this process's
worker_class = Worker
threads = 8
timeout = 60
graceful_timeout = 10
keepalive = 15
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
accesslog = None
loglevel = "warning"
limit_request_line = 2048
limit_request_fields = 50
