"""Monitors a text classifier: `gunicorn -c gunicorn.conf.py monitoring:app`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

os.environ["DO_NOT_TRACK"] = "1"  # Evidently would report that it is used

from monitor_app import create_app
from monitor_tree import SetupError

BOOT_ERROR = 3  # gunicorn gives up at this status, where others are tried again for ever

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

try:
    app = create_app(Path(__file__).parent)
except SetupError as error:
    sys.stderr.write(f"Error: {error}\n")
    sys.exit(BOOT_ERROR)
