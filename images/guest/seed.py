"""What the cloud tells a server at boot, for images without cloud-init: run as ``python -m guest.seed`` before the agent needs it.

Read from the config drive, or from the metadata service where there is none: the host name, and of the user data the files that it
asks to be written. cloud-init does the same and very much more, in half a minute where this takes a second.

ref: https://docs.openstack.org/nova/latest/user/metadata.html, https://cloudinit.readthedocs.io/en/latest/reference/modules.html#write-files
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

DRIVE = Path("/dev/disk/by-label/config-2")
SERVICE = "http://169.254.169.254/openstack/latest/"
MOUNT_POINT = Path("/run/hutch-seed")
# for a drive to be found; a slow machine looks at its devices for some seconds
DRIVE_LIMIT_SECONDS = 20.0
SERVICE_LIMIT_SECONDS = 300.0


def main() -> None:
    meta_data, user_data = _from_drive() or _from_service()
    socket.sethostname(json.loads(meta_data)["hostname"].partition(".")[0])
    write_files(user_data)


def write_files(user_data: str, root: Path = Path("/")) -> None:
    """Each file is there whole or not at all. Raises ValueError when the user data is not a cloud-config of plain files."""
    if not user_data.startswith("#cloud-config"):
        raise ValueError("the user data is not a cloud-config")
    document: dict[str, Any] = yaml.safe_load(user_data) or {}
    for file in document.get("write_files", []):
        if "encoding" in file or file.get("append"):
            raise ValueError(f"{file['path']}: only plain text is written here")
        path = root / file["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(file["content"])
        partial.chmod(int(file.get("permissions", "0644"), 8))
        partial.replace(path)


def _from_drive() -> tuple[str, str] | None:
    limit = time.monotonic() + DRIVE_LIMIT_SECONDS
    while not DRIVE.exists():
        if time.monotonic() > limit:
            return None
        time.sleep(0.05)
    MOUNT_POINT.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "ro", DRIVE, MOUNT_POINT], check=True)
    try:
        folder = MOUNT_POINT / "openstack" / "latest"
        return (folder / "meta_data.json").read_text(), (folder / "user_data").read_text()
    finally:
        subprocess.run(["umount", MOUNT_POINT], check=True)


def _from_service() -> tuple[str, str]:
    # needed only here, and slow to import
    from urllib.error import URLError
    from urllib.request import urlopen

    limit = time.monotonic() + SERVICE_LIMIT_SECONDS
    while True:
        try:
            meta_data, user_data = (urlopen(SERVICE + name, timeout=10).read() for name in ("meta_data.json", "user_data"))  # noqa: S310
            return meta_data.decode(), user_data.decode()
        except (URLError, TimeoutError):
            if time.monotonic() > limit:
                raise
            time.sleep(1)


if __name__ == "__main__":
    main()
