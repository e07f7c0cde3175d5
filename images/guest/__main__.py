"""Start the agent. The nursery goes first: its imports are what a launch waits for, and they run beside ours."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .nurse import Nurse

parser = argparse.ArgumentParser(prog="hutch-agent", description="The agent of a Hutch instance.")
parser.add_argument("--etc", type=Path, required=True, help="folder of agent.json, which names the hub's authority and our port")
parser.add_argument("--state", type=Path, required=True, help="folder for key, owner and log; outlives a boot")
parser.add_argument("--home", type=Path, required=True, help="the owner's home folder")
parser.add_argument("--address", required=True, help="address to listen on")
parser.add_argument("--console", default="/dev/ttyS0", help="where to print the fingerprint; - is standard output")
parser.add_argument(
    "--account", choices=("current", "create"), default="create", help="run as ourselves, or make the owner an account"
)


def main() -> None:
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    nurse = Nurse(options.home)
    if (os.cpu_count() or 1) > 1:
        nurse.start()

    from . import agent

    create = options.account == "create"
    agent.main(agent.Settings(options.etc, options.state, options.home, options.address, options.console, create), nurse)


main()
