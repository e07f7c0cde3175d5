"""Processor, memory and disk of the instance, as the hub shows them to its owner."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import psutil

# the first call has nothing to compare with and always answers zero
psutil.cpu_percent(interval=None)


def read(home: Path) -> dict[str, Any]:
    """The processor's share counts since the last reading."""
    memory = psutil.virtual_memory()
    # the home folder comes with the owner; before that the disk it will be on counts
    disk = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists()))
    return {
        "cpu": {"cores": os.cpu_count() or 1, "percent": psutil.cpu_percent(interval=None)},
        "memory": {"total": memory.total, "used": memory.total - memory.available},
        "disk": {"total": disk.total, "used": disk.used},
    }
