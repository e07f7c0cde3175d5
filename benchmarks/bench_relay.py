"""The relay of desktops: its CPU for bytes and for messages, what it adds to an echo, its memory for each viewer.

Beside it, in the same minutes and on the same stub of a desktop: websockify, and a bare copy of bytes in asyncio. The relay reads
and filters what browsers say, and is measured with plain connections to desktops and with mutual TLS, as it goes to instances;
the others only ever have plain ones.

A machine that has other work is measured with `chrt --rr 5` before the command: what others leave in its caches counts too.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import HERE_BIN, Figure, cpu_seconds, private_folder, report, spread, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from desktop_servers import ANIMATE, FLOOD, FRAME, FRAMES_PER_SECOND, GREETING, STILL, address

ROUNDS = 5
FLOODS, FLOOD_MEGABYTES = 4, 128
VIEWERS = 50
WATCHED_SECONDS = 4.0
ECHOES = 300
MANY_VIEWERS, MANY_DESKTOPS = 1000, 100
SERVERS = Path(__file__).with_name("desktop_servers.py")
UPGRADE = (
    "GET /rooms/{number} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
)


# --- what runs


@dataclass
class Side:
    """Something between a viewer and a desktop."""

    name: str
    port: int
    pid: int
    connect: Callable[[int], Viewer]

    def cpu(self) -> float:
        """Of the process and of those it has made, for websockify makes one for each viewer."""
        return sum(cpu_seconds(pid) for pid in [self.pid, *children(self.pid)])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def server(*arguments: object) -> Iterator[tuple[int, int]]:
    """The port that a server listens at, and its process."""
    command = [sys.executable, str(SERVERS), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.stdin.close()


@contextmanager
def websockify(desktops_port: int) -> Iterator[Side]:
    port = free_port()
    command = [HERE_BIN / "websockify", f"127.0.0.1:{port}", f"{address(1)}:{desktops_port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port), "websockify listens")
        yield Side("websockify", port, process.pid, lambda number: Viewer(port).upgrade(number, "binary").greeted())
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def relay(desktops_port: int, *tls: Path) -> Iterator[Side]:
    name = "relay, TLS behind" if tls else "relay"
    with server("relay", desktops_port, *tls) as (port, pid):
        yield Side(name, port, pid, lambda number: Viewer(port).upgrade(number, "hutch.rfb").shake_hands().greeted())


@contextmanager
def bare_copy(desktops_port: int) -> Iterator[Side]:
    with server("copy", desktops_port) as (port, pid):
        yield Side("bare copy", port, pid, lambda number: Viewer(port).greeted())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def make_certificate(folder: Path) -> Path:
    """One that is its own authority, for both ends."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "desktop")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("desktop")]), critical=False)
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    unencrypted = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*unencrypted))
    return folder


# --- viewers


class Viewer:
    """A plain socket that speaks just enough: it costs so little that many of it are no burden beside what is measured."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.framed = False
        self.buffer = b""

    def upgrade(self, number: int, protocol: str) -> Viewer:
        self.socket.sendall(UPGRADE.format(number=number, protocol=protocol).encode())
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(4096)
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        self.framed = True
        return self

    def shake_hands(self) -> Viewer:
        session = json.loads(self.receive())["session"]
        self.send(json.dumps({"do": "rfb", "session": session}).encode(), opcode=1)
        for expected, answer in ((b"RFB 003.008\n", b"RFB 003.008\n"), (b"\1\1", b"\1"), (bytes(4), b"\1")):
            assert self.receive() == expected
            self.send(answer)
        return self

    def greeted(self) -> Viewer:
        assert self.receive(len(GREETING)) == GREETING
        return self

    def send(self, data: bytes, opcode: int = 2) -> None:
        header = bytes((0x80 | opcode, 0x80 | len(data), 0, 0, 0, 0)) if self.framed else b""
        self.socket.sendall(header + data)

    def ask(self, what: int, megabytes: int = 0, delay_ms: int = 0) -> None:
        self.send(struct.pack(">BBHHHH", 3, 1, what, 0, megabytes, delay_ms))

    def receive(self, length: int = 0) -> bytes:
        """One short frame; of a bare copy, as many bytes."""
        while len(self.buffer) < (2 + (self.buffer[1] if self.buffer[1:] else 0) if self.framed else length):
            more = self.socket.recv(4096)
            assert more, "the connection was closed"
            self.buffer += more
        start, end = (2, 2 + self.buffer[1]) if self.framed else (0, length)
        data, self.buffer = self.buffer[start:end], self.buffer[end:]
        return data

    def echo(self) -> float:
        """The milliseconds that a fence takes there and back."""
        began = time.perf_counter()
        self.send(struct.pack(">B3xIB8s", 248, 1, 8, b"12345678"))
        self.receive(17)
        return (time.perf_counter() - began) * 1000

    def close(self) -> None:
        self.socket.close()


class Crowd:
    """Viewers that take all they get, as fast as it comes; of some of it they count the bytes."""

    def __init__(self, viewers: Sequence[Viewer]) -> None:
        self.viewers = {viewer.socket.fileno(): viewer for viewer in viewers}
        self.buffer = bytearray(1 << 20)
        self.ready = select.epoll()
        for descriptor in self.viewers:
            self.ready.register(descriptor, select.EPOLLIN)

    def take(self, wait_seconds: float, each: Callable[[Viewer, int], None]) -> None:
        for descriptor, _ in self.ready.poll(wait_seconds):
            viewer = self.viewers[descriptor]
            received = viewer.socket.recv_into(self.buffer)
            assert received, "the connection was closed"
            each(viewer, received)

    def close(self) -> None:
        self.ready.close()
        for viewer in self.viewers.values():
            viewer.close()


# --- what is measured


def cpu_per_gigabyte(side: Side) -> float:
    crowd = Crowd([side.connect(1) for _ in range(FLOODS)])
    wanted, received = FLOODS * FLOOD_MEGABYTES << 20, 0

    def count(_viewer: Viewer, length: int) -> None:
        nonlocal received
        received += length

    before = side.cpu()
    for viewer in crowd.viewers.values():
        viewer.ask(FLOOD, FLOOD_MEGABYTES)
    while received < wanted:
        crowd.take(10, count)
    used = side.cpu() - before
    crowd.close()
    return used / (wanted / 1e9)


def cpu_per_thousand_messages(side: Side) -> float:
    """Of viewers on whose desktops something moves: a frame one way, and a request for the next the other way."""
    with animated(side) as (crowd, turn):
        turn(1.0)
        before = side.cpu()
        frames = turn(WATCHED_SECONDS)
        used = side.cpu() - before
        assert frames > crowd * FRAMES_PER_SECOND * WATCHED_SECONDS * 0.3, "the machine is too busy to measure this"
    return used / frames * 1000


@contextmanager
def animated(side: Side) -> Iterator[tuple[int, Callable[[float], float]]]:
    """As many viewers as one core is asked for. The second of the two lets them live for some seconds: so many frames came."""
    viewers = [side.connect(1) for _ in range(VIEWERS)]
    crowd = Crowd(viewers)
    owed = dict.fromkeys(viewers, 0)
    frames = 0.0

    def take(viewer: Viewer, length: int) -> None:
        nonlocal frames
        owed[viewer] += length
        frames += length / len(FRAME)
        while owed[viewer] >= len(FRAME):
            owed[viewer] -= len(FRAME)
            viewer.ask(0)

    def turn(seconds: float) -> float:
        nonlocal frames
        frames, until_then = 0.0, time.monotonic() + seconds
        while time.monotonic() < until_then:
            crowd.take(0.05, take)
        return frames

    for number, viewer in enumerate(viewers):
        viewer.ask(ANIMATE, delay_ms=number * 1000 // FRAMES_PER_SECOND // VIEWERS)
    try:
        yield VIEWERS, turn
    finally:
        for viewer in viewers:
            viewer.ask(STILL)
        crowd.close()


ECHOER = """
import sys; sys.path[:0] = {path!r}
from bench_relay import *
direct, between = Viewer({desktops}, address(2)).greeted(), {connect}
both = [(direct.echo(), between.echo()) for _ in range({count}) if not time.sleep(0.005)]
print(json.dumps(both))
"""


def added_to_an_echo(side: Side, desktops_port: int, desktops_pid: int) -> list[float]:
    """Milliseconds by which echoes take longer than direct ones between them: the median and the 99th percentile.

    The relay has one core, which it shares with whoever measures; its crowd and their desktops have the others.
    """
    connect = f"Viewer({side.port}).upgrade(2, 'hutch.rfb').shake_hands().greeted()"
    script = ECHOER.format(path=[str(SERVERS.parent)], desktops=desktops_port, connect=connect, count=ECHOES)
    with one_core(side.pid, desktops_pid) as core, animated(side) as (_, turn):
        turn(1.0)
        command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as echoer:
            while echoer.poll() is None:
                turn(0.2)
            assert echoer.stdout
            both = json.loads(echoer.stdout.read())
    direct, between = zip(*both, strict=True)
    print(f"  direct {percentiles(direct)} ms; through the {side.name} {percentiles(between)} ms")
    return [percentile(between, at) - percentile(direct, at) for at in (50, 99)]


@contextmanager
def one_core(measured: int, *others: int) -> Iterator[int]:
    """Gives a process a core, and those it works with the rest, as far as there are any."""
    cores = os.sched_getaffinity(0)
    core = max(cores)
    os.sched_setaffinity(measured, {core})
    for pid in (0, *others):
        os.sched_setaffinity(pid, cores - {core} or cores)
    try:
        yield core
    finally:
        for pid in (0, measured, *others):
            os.sched_setaffinity(pid, cores)


def percentile(values: Sequence[float], at: int) -> float:
    return statistics.quantiles(values, n=100)[at - 1]


def percentiles(values: Sequence[float]) -> str:
    return " ".join(f"p{at} {percentile(values, at):.2f}" for at in (50, 95, 99))


def memory_per_viewer(side: Side, viewers: int, desktops: int) -> float:
    """KiB, with everybody connected, shown something, and idle again."""
    warm = [side.connect(1) for _ in range(20)]
    Crowd(warm).close()
    before = resident_kib(side.pid)
    crowd = Crowd([side.connect(number % desktops + 1) for number in range(viewers)])
    for viewer in crowd.viewers.values():
        viewer.ask(ANIMATE)
        viewer.ask(STILL)
        assert viewer.echo() < 10_000
    grown = resident_kib(side.pid) - before
    crowd.close()
    print(f"  {side.name}: {viewers} viewers of {desktops} desktops held, {grown / 1024:.0f} MiB")
    return grown / viewers


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


# --- all of it


def compared(sides: Sequence[Side], measure: Callable[[Side], float], unit: str) -> dict[str, float]:
    """The sides take turns."""
    values: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(ROUNDS):
        for side in sides:
            values[side.name].append(measure(side))
    for name, measured in values.items():
        print(f"  {name}: {spread(measured)} {unit}")
    return {name: statistics.median(measured) for name, measured in values.items()}


def ratios(what: str, values: dict[str, float]) -> Iterator[Figure]:
    for name, limit in (("relay", 0.6), ("relay, TLS behind", 1.0)):
        yield Figure(f"CPU per {what}: {name}", round(values[name] / values["websockify"], 2), "x", limit, "websockify")
        yield Figure(
            f"CPU per {what}: {name}, bare", round(values[name] / values["bare copy"], 2), "x", None, "bare copy in asyncio"
        )


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures: list[Figure] = []
    with ExitStack() as stack:
        secrets = make_certificate(stack.enter_context(private_folder()))
        plain, plain_pid = stack.enter_context(server("desktops", MANY_DESKTOPS))
        secured, _ = stack.enter_context(server("desktops", MANY_DESKTOPS, secrets))
        ours, ours_tls = stack.enter_context(relay(plain)), stack.enter_context(relay(secured, secrets))
        sides = [ours, ours_tls, stack.enter_context(websockify(plain)), stack.enter_context(bare_copy(plain))]

        # the timers of the pace that BBR keeps count as CPU of whoever sends; relays choose for themselves how they send
        kernel = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        print(f"CPU seconds per GB, {FLOODS} viewers, {FLOODS * FLOOD_MEGABYTES} MiB a round, the kernel's sockets with {kernel}:")
        figures += ratios("GB", compared(sides, cpu_per_gigabyte, "s"))
        print(
            f"CPU seconds per 1000 messages, {VIEWERS} viewers, {FRAMES_PER_SECOND} frames of {len(FRAME) >> 10} KiB a second each:"
        )
        figures += ratios("message", compared(sides, cpu_per_thousand_messages, "s"))
        print(f"an echo beside {VIEWERS} animated viewers, the relay on one core:")
        median, p99 = added_to_an_echo(ours, plain, plain_pid)
        against = "a direct connection to the desktop"
        figures.append(Figure("added to an echo, p99", round(p99, 2), "ms", 2.0, against))
        figures.append(Figure("added to an echo, median", round(median, 2), "ms", None, against))
        # of relays that have not had anybody before, whose memory could be used again
        print("memory:")
        for fresh, behind in ((relay(plain), ""), (relay(secured, secrets), ", TLS behind")):
            with fresh as side:
                held = memory_per_viewer(side, MANY_VIEWERS, MANY_DESKTOPS)
            figures.append(Figure(f"memory of an idle viewer{behind}", round(held), "KiB", 200, "none"))
    report(*figures)


if __name__ == "__main__":
    main()
