"""devcloud's servers as processes: what they are given, what survives what, and that nothing is left running.

The agent here is a small stand-in: a web server at the server's address with a detached child, as a notebook's kernels are.
"""

import base64
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spawner.devcloud.process import DevcloudProcess, running

AGENT = """
import argparse, http.server, json, os, signal, subprocess, sys
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("--etc", "--state", "--home", "--address", "--console", "--account"):
    parser.add_argument(name, required=True)
options = parser.parse_args()
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
seen = {"pid": os.getpid(), "child": child.pid, "environment": dict(os.environ), "options": vars(options), "folder": os.getcwd()}
boots = Path(options.home, "boots")
boots.write_text(str(int(boots.read_text() or 0) + 1 if boots.exists() else 1))
seen["boots"] = int(boots.read_text())
port = json.loads(Path(options.etc, "agent.json").read_text())["port"]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/power-off":
            os._exit(0)
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass

server = http.server.HTTPServer((options.address, port), Handler)
if "STUBBORN" in Path(options.etc, "agent.json").read_text():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("the agent writes to standard output", flush=True)
with open(options.console, "a") as console:
    console.write("HUTCH-AGENT fingerprint sha256:" + "0" * 64 + "\\n")
server.serve_forever()
"""


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[DevcloudProcess]:
    """A devcloud whose servers run the stand-in."""
    script = tmp_path / "agent.py"
    script.write_text(AGENT)
    arguments = ["--agent-command", f"{sys.executable} {script}", "--agent-folder", str(tmp_path), "--stop-grace-seconds", "2"]
    with running(tmp_path / "devcloud", *arguments) as process:
        yield process


def user_data(**more: Any) -> str:
    content = json.dumps({"port": 8765, "hub_ca": "none"} | more)
    config = {"write_files": [{"path": "/etc/hutch/agent.json", "permissions": "0644", "content": content}]}
    return base64.b64encode(b"#cloud-config\n" + yaml.safe_dump(config).encode()).decode()


@pytest.fixture
def booted(agents: DevcloudProcess, boot: Any, eventually: Any) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Boot a server and wait until its agent answers: the server, and what the agent says of itself."""

    def booted(connection: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
        server = boot(connection, user_data=user_data(**more))
        return server, eventually(lambda: ask(server))

    return booted


def ask(server: Any, path: str = "/") -> dict[str, Any] | None:
    address = server.addresses["hutch"][0]["addr"]
    try:
        with urllib.request.urlopen(f"http://{address}:8765{path}", timeout=1) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return None


def alive(*pids: int) -> list[int]:
    """Those of the processes that are neither gone nor dead."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def test_the_agent_is_given_its_places_and_nothing_of_ours(agents: Any, booted: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with agents.connect() as cloud:
        server, seen = booted(cloud)
        folder = agents.state_dir / "servers" / server.id
        assert seen["options"] == {
            "etc": str(folder / "root/etc/hutch"),
            "state": str(folder / "root/var/lib/hutch"),
            "home": str(folder / "home"),
            "address": server.addresses["hutch"][0]["addr"],
            "console": str(folder / "console.log"),
            "account": "current",
        }
        assert seen["folder"] == str(tmp_path)
        assert set(seen["environment"]) - {"LC_CTYPE"} == {"PATH", "HOME", "LANG"}
        console = cloud.compute.get_server_console_output(server)["output"]
        assert "HUTCH-AGENT fingerprint sha256:" in console
        assert "the agent writes to standard output" in console
        assert "demos and tests only" in console


def test_two_servers_have_the_same_port_on_addresses_of_their_own(agents: Any, booted: Any) -> None:
    with agents.connect() as cloud:
        first, second = booted(cloud)[1], booted(cloud)[1]
        assert first["options"]["address"] != second["options"]["address"]


def test_the_home_survives_stop_start_and_reboot_and_goes_with_the_server(agents: Any, booted: Any, eventually: Any) -> None:
    with agents.connect() as cloud:
        server, seen = booted(cloud)
        home = Path(seen["options"]["home"])
        for number, again in enumerate(("start", "SOFT", "HARD", "unshelve"), start=2):
            if again in ("start", "unshelve"):
                (cloud.compute.stop_server if again == "start" else cloud.compute.shelve_server)(server)
                cloud.compute.wait_for_server(server, status="SHUTOFF" if again == "start" else "SHELVED_OFFLOADED", interval=0.01)
                assert ask(server) is None and alive(seen["pid"], seen["child"]) == []
                (cloud.compute.start_server if again == "start" else cloud.compute.unshelve_server)(server)
            else:
                cloud.compute.reboot_server(server, again)
            cloud.compute.wait_for_server(server, interval=0.01)
            before, seen = seen, eventually(lambda number=number: (now := ask(server)) and now["boots"] == number and now)
            assert alive(before["pid"], before["child"]) == []
        cloud.compute.delete_server(server)
        cloud.compute.wait_for_delete(server, interval=0.01)
        eventually(lambda: not home.exists())
        assert alive(seen["pid"], seen["child"]) == []


def test_an_agent_that_will_not_end_is_killed_after_the_grace(agents: Any, booted: Any) -> None:
    with agents.connect() as cloud:
        server, seen = booted(cloud, mood="STUBBORN")
        cloud.compute.stop_server(server)
        cloud.compute.wait_for_server(server, status="SHUTOFF", interval=0.05)
        assert alive(seen["pid"], seen["child"]) == []


def test_a_guest_that_powers_off_is_shutoff(agents: Any, booted: Any) -> None:
    with agents.connect() as cloud:
        server, seen = booted(cloud)
        ask(server, "/power-off")
        server = cloud.compute.wait_for_server(server, status="SHUTOFF", interval=0.01)
        assert alive(seen["pid"], seen["child"]) == []


def test_a_crash_leaves_the_server_active_without_an_agent(agents: Any, booted: Any, eventually: Any) -> None:
    with agents.connect() as cloud:
        server, seen = booted(cloud)
        agents.trouble(server.id, "crash")
        eventually(lambda: not alive(seen["pid"], seen["child"]))
        assert cloud.compute.get_server(server).status == "ACTIVE"
        cloud.compute.reboot_server(server, "HARD")
        eventually(lambda: ask(server))


def test_a_mute_agent_takes_connections_and_never_answers(agents: Any, booted: Any, eventually: Any) -> None:
    with agents.connect() as cloud:
        server, seen = booted(cloud)
        agents.trouble(server.id, "mute")
        eventually(lambda: Path(f"/proc/{seen['pid']}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert alive(seen["child"])
        socket.create_connection((seen["options"]["address"], 8765), timeout=5).close()
        cloud.compute.stop_server(server)
        cloud.compute.wait_for_server(server, status="SHUTOFF", interval=0.05)
        assert alive(seen["pid"], seen["child"]) == []


def test_a_server_may_come_up_without_its_agent(agents: Any, boot: Any, eventually: Any) -> None:
    agents.next_boot(never_agent=True)
    with agents.connect() as cloud:
        server = boot(cloud, user_data=user_data())
        assert ask(server) is None
        assert "Linux version" in cloud.compute.get_server_console_output(server)["output"]
        cloud.compute.reboot_server(server, "HARD")
        eventually(lambda: ask(server))


def test_user_data_cannot_write_outside_the_server(agents: Any, boot: Any) -> None:
    config = {"write_files": [{"path": "../../../../escaped", "content": "x"}]}
    text = base64.b64encode(b"#cloud-config\n" + yaml.safe_dump(config).encode()).decode()
    with agents.connect() as cloud:
        assert "not a path inside the server" in boot(cloud, "ERROR", user_data=text).fault["message"]
    assert not list(agents.state_dir.parent.rglob("escaped"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["SIGTERM", "SIGINT", "SIGKILL"])
def test_no_process_outlives_devcloud_and_every_server_comes_back(agents: Any, booted: Any, eventually: Any, number: int) -> None:
    with agents.connect() as cloud:
        up, before = booted(cloud, mood="STUBBORN" if number == signal.SIGKILL else "mild")
        off, gone = booted(cloud)
        cloud.compute.stop_server(off)
        cloud.compute.wait_for_server(off, status="SHUTOFF", interval=0.01)
        network = cloud.network.find_network("hutch")
        spare = cloud.network.create_port(network_id=network.id, name="spare")
    inside = children(agents.pid)
    agents.stop(number)
    eventually(lambda: not alive(*inside, before["pid"], before["child"], gone["child"]))
    agents.start()
    with agents.connect() as cloud:
        after = eventually(lambda: ask(up))
        assert after["boots"] == 2 and after["options"] == before["options"]
        assert cloud.compute.get_server(up.id).status == "ACTIVE"
        assert (cloud.compute.get_server(off.id).status, ask(off)) == ("SHUTOFF", None)
        assert cloud.compute.get_server(up.id).addresses == up.addresses
        assert [port.id for port in cloud.network.ports(name="spare")] == [spare.id]
        assert cloud.network.create_port(network_id=network.id).fixed_ips != spare.fixed_ips


def test_a_session_goes_on_over_a_restart(agents: Any) -> None:
    with agents.connect() as cloud:
        list(cloud.compute.servers())
        agents.restart()
        assert list(cloud.compute.servers()) == []
        assert not any(call.startswith("POST") for call in agents.calls()["counts"])


def test_servers_may_stay_off_after_a_restart(tmp_path: Path, boot: Any) -> None:
    with running(tmp_path, "--leave-stopped", payload="stub") as devcloud, devcloud.connect() as cloud:
        server = boot(cloud)
        devcloud.restart()
        assert cloud.compute.get_server(server.id).status == "SHUTOFF"


def test_a_build_that_a_restart_interrupts_ends_in_error(tmp_path: Path, boot: Any) -> None:
    with running(tmp_path, payload="stub") as devcloud, devcloud.connect() as cloud:
        devcloud.next_boot(seconds=60)
        server = boot(cloud, "BUILD")
        devcloud.restart(signal.SIGKILL)
        assert cloud.compute.get_server(server.id).status == "ERROR"


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        kin = parents.get(todo.pop(), [])
        found += kin
        todo += kin
    assert found
    return found
