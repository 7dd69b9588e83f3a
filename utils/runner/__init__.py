"""A loaded model that many callers share, in batches, here or in worker processes."""

from utils.runner.calls import RunnerClosed, WorkerDied
from utils.runner.opener import Opener, opener
from utils.runner.runner import Method, Runner
from utils.runner.signatures import DEFAULT_SIGNATURES, Signature

__all__ = [
    "DEFAULT_SIGNATURES",
    "Method",
    "Opener",
    "Runner",
    "RunnerClosed",
    "Signature",
    "WorkerDied",
    "opener",
]
