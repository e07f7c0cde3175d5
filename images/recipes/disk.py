"""Makes a bootable disk of a folder: ``disk.py ROOT OUT.raw MEGABYTES``. Needs no loop device and mounts nothing.

A GUID partition table with a partition for GRUB (BIOS) and one with ext4, which ``mke2fs`` fills. What grub-install would do, which
wants real devices, is done here: ``boot.img`` in the first sector knows where ``core.img`` begins, and that where its rest is.

ref: https://www.gnu.org/software/grub/manual/grub/html_node/Images.html
"""

from __future__ import annotations

import argparse
import struct
import subprocess
from pathlib import Path

SECTOR = 512
GRUB_BEGINS, ROOT_BEGINS = 2048, 4096
TABLE_AT_THE_END = 34
GRUB_MODULES = ["biosdisk", "part_gpt", "ext2", "normal", "linux", "configfile", "serial", "terminal", "echo", "minicmd", "boot"]
PREFIX = "(hd0,gpt2)/boot/grub"

# offsets in GRUB's own images
KERNEL_SECTOR, BOOT_DRIVE, DRIVE_CHECK, PARTITION_TABLE = 0x5C, 0x64, 0x66, 0x1B8
BLOCK_LIST = SECTOR - 12
LOAD_SEGMENT = 0x820


def make_disk(root: Path, out: Path, megabytes: int) -> None:
    out.unlink(missing_ok=True)
    with out.open("wb") as file:
        file.truncate(megabytes * 2**20)
    grub = [f"-n1:{GRUB_BEGINS}:{ROOT_BEGINS - 1}", "-t1:ef02"]
    # the type by which systemd-repart knows what to let grow
    system = [f"-n2:{ROOT_BEGINS}:0", "-t2:8304", "-c2:root"]
    _run("sgdisk", *grub, *system, str(out))
    kilobytes = (megabytes * 2048 - TABLE_AT_THE_END - ROOT_BEGINS) // 8 * 4
    options = f"offset={ROOT_BEGINS * SECTOR},lazy_itable_init=1,nodiscard"
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-E", options, "-d", str(root), str(out), f"{kilobytes}k")
    _write_loader(root, out)


def _write_loader(root: Path, out: Path) -> None:
    core_file = root / "core.img"
    _run("chroot", str(root), "grub-mkimage", "-O", "i386-pc", "-o", "/core.img", "-p", PREFIX, *GRUB_MODULES)
    core = bytearray(core_file.read_bytes())
    core_file.unlink()
    core += b"\0" * (-len(core) % SECTOR)
    struct.pack_into("<QHH", core, BLOCK_LIST, GRUB_BEGINS + 1, len(core) // SECTOR - 1, LOAD_SEGMENT)
    boot = bytearray((root / "usr/lib/grub/i386-pc/boot.img").read_bytes())
    struct.pack_into("<Q", boot, KERNEL_SECTOR, GRUB_BEGINS)
    boot[BOOT_DRIVE] = 0xFF
    boot[DRIVE_CHECK : DRIVE_CHECK + 2] = b"\x90\x90"
    with out.open("r+b") as file:
        boot[PARTITION_TABLE:SECTOR] = file.read(SECTOR)[PARTITION_TABLE:]
        file.seek(0)
        file.write(boot)
        file.seek(GRUB_BEGINS * SECTOR)
        file.write(core)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a bootable disk of a folder.")
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("megabytes", type=int)
    options = parser.parse_args()
    make_disk(options.root, options.out, options.megabytes)
