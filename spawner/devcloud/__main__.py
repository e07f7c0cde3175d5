"""The command line: python -m spawner.devcloud --state DIR --port 9500. For demos and tests only."""

import argparse
import asyncio
import logging
import shlex
import sys
from pathlib import Path

from spawner.devcloud.app import CannotStart, Devcloud
from spawner.devcloud.state import Options


def parse(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m spawner.devcloud", description="A one-machine OpenStack API for demos and tests only."
    )
    parser.add_argument("--state", type=Path, required=True, help="folder for clouds.yaml, records, homes and consoles")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=9500, help="port to listen on, 0 for a free one (default %(default)s)")
    parser.add_argument(
        "--payload", choices=("agent", "stub"), default="agent", help="what a booted server runs (default %(default)s)"
    )
    parser.add_argument("--agent-command", help="command line of the agent (default: this Python with -m images.guest)")
    parser.add_argument("--agent-folder", type=Path, help="folder in which the agent is started (default: this checkout)")
    parser.add_argument(
        "--boot-seconds", type=float, default=Options.boot_seconds, help="from POST to ACTIVE (default %(default)s)"
    )
    parser.add_argument(
        "--stop-grace-seconds",
        type=float,
        default=Options.stop_grace_seconds,
        help="from the power button to the plug (default %(default)s)",
    )
    parser.add_argument(
        "--subnet", default="", help="addresses of the servers (default: a free one of 127.64.0.0/16 to 127.127.0.0/16)"
    )
    parser.add_argument(
        "--leave-stopped", action="store_true", help="servers that were running are SHUTOFF after a restart, not booted again"
    )
    given = parser.parse_args(arguments)
    command = tuple(shlex.split(given.agent_command)) if given.agent_command else Options.agent_command
    return Options(
        state_dir=given.state.resolve(),
        host=given.host,
        port=given.port,
        payload=given.payload,
        agent_command=command,
        agent_folder=(given.agent_folder or Options.agent_folder).resolve(),
        boot_seconds=given.boot_seconds,
        stop_grace_seconds=given.stop_grace_seconds,
        subnet=given.subnet,
        leave_stopped=given.leave_stopped,
    )


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        asyncio.run(Devcloud(options).serve())
    except CannotStart as error:
        sys.exit(f"devcloud: {error}")


if __name__ == "__main__":
    main()
