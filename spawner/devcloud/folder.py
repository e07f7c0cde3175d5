"""The folder of one server: what stands in for its disk and its serial console.

root/       the files that user_data asks for, and the agent's state
home/       the user's home; it goes when the server is deleted, not before
console.log what os-getConsoleOutput shows
"""

import base64
import binascii
import gzip
import shutil
from pathlib import Path
from typing import Any

import yaml

CONSOLE_BYTES = 100 * 1024
BOOT_LOG = """\
[    0.000000] Linux version 6.1.0-devcloud (devcloud, for demos and tests only) #1 SMP
[    0.000000] Command line: root=/dev/vda1 ro console=ttyS0
[    0.412077] virtio_net virtio0 eth0: {address}
[    1.003141] cloud-init: datasource ConfigDrive, instance {id}
"""


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "root"
        self.home = path / "home"
        self.console = path / "console.log"
        self.etc = self.root / "etc/hutch"
        self.var = self.root / "var/lib/hutch"
        self.agent_file = self.etc / "agent.json"

    def create(self, user_data: str | None) -> None:
        """What cloud-init does at the first boot: write the files that user_data names, below root/."""
        if self.root.exists():
            return
        for folder in (self.etc, self.var, self.home):
            folder.mkdir(parents=True, exist_ok=True)
        for wanted in write_files(user_data):
            path = (self.root / str(wanted.get("path", "")).lstrip("/")).resolve()
            if not path.is_relative_to(self.root.resolve()) or path == self.root.resolve():
                raise ValueError(f"write_files: {wanted.get('path')!r} is not a path inside the server")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_of(wanted))
            path.chmod(int(str(wanted.get("permissions", "0644")), 8))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def begin_console(self, server_id: str, address: str, cold: bool) -> None:
        """A cold boot starts a new log, as qemu does; a soft reboot goes on in the old one."""
        with self.console.open("w" if cold else "a") as file:
            file.write(BOOT_LOG.format(address=address, id=server_id))

    def say(self, line: str) -> None:
        with self.console.open("a") as file:
            file.write(line + "\n")

    def read_console(self) -> str:
        """The end of the log, as much as Nova's libvirt driver would read."""
        try:
            with self.console.open("rb") as file:
                file.seek(max(0, self.console.stat().st_size - CONSOLE_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def write_files(user_data: str | None) -> list[dict[str, Any]]:
    """The entries of write_files in cloud-config; none in any other kind of user_data."""
    text = base64.b64decode(user_data or "")
    if not text.startswith(b"#cloud-config"):
        return []
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"user_data is not valid cloud-config: {error}") from error
    entries = config.get("write_files", []) if isinstance(config, dict) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def content_of(entry: dict[str, Any]) -> bytes:
    content, encoding = str(entry.get("content", "")).encode(), str(entry.get("encoding", "text/plain"))
    try:
        if "b64" in encoding or "base64" in encoding:
            content = base64.b64decode(content)
        return gzip.decompress(content) if encoding.startswith(("gz", "gzip")) else content
    except (binascii.Error, OSError) as error:
        raise ValueError(f"write_files: {entry.get('path')!r} is not {encoding}") from error
