"""Forked kernels do what started ones do."""

from __future__ import annotations

import json
import os
import signal
import sys

import psutil
import pytest

FORKED_BY = "import os; print(open(f'/proc/{os.getppid()}/comm').read())"


@pytest.fixture
async def browser(shared_guest):
    async with shared_guest.browser() as client:
        yield client


@pytest.fixture
async def kernel(browser, start_kernel):
    kernel = await start_kernel(browser)
    yield kernel
    if await kernel.state():
        await kernel.shut_down()


def add_kernelspec(guest, name: str, **spec) -> None:
    folder = guest.home / ".local/share/jupyter/kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": name, "language": "python", **spec}))


async def test_it_is_forked_and_runs_code(kernel):
    assert await kernel.run(FORKED_BY) == "hutch-kernels"
    assert await kernel.run("print(6 * 7)") == "42"
    assert await kernel.run("1 / 0") == "ZeroDivisionError"


async def test_it_starts_in_the_folder_of_its_notebook(shared_guest, browser, start_kernel):
    (shared_guest.home / "run 17").mkdir()
    kernel = await start_kernel(browser, path="run 17/plot.ipynb")
    assert await kernel.run("import os; print(os.getcwd())") == str(shared_guest.home / "run 17")
    await kernel.shut_down()


async def test_an_interrupt_stops_the_cell_and_keeps_the_state(kernel):
    await kernel.run("x = 1")

    async def interrupt():
        await kernel.act("interrupt")

    code = "print('begun', flush=True)\nimport time\nwhile True: time.sleep(0.01)"
    assert await kernel.run(code, when_begun=interrupt) == "begun\nKeyboardInterrupt"
    assert await kernel.run("print(x)") == "1"


async def test_a_restart_forgets_the_state_and_forks_again(kernel):
    first = await kernel.run("import os; x = 1; print(os.getpid())")
    await kernel.act("restart")
    assert await kernel.run("x") == "NameError"
    assert await kernel.run("import os; print(os.getpid())") != first
    assert await kernel.run(FORKED_BY) == "hutch-kernels"


async def test_shut_down_it_is_gone(kernel, until):
    process = psutil.Process(int(await kernel.run("import os; print(os.getpid())")))
    await kernel.shut_down()
    await until(lambda: not process.is_running(), "the kernel's process ended")


async def test_its_death_is_noticed_and_it_is_started_again(kernel, until):
    first = int(await kernel.run("import os; print(os.getpid())"))
    os.kill(first, signal.SIGKILL)

    async def is_back():
        return await kernel.state() in {"idle", "starting"} and int(await kernel.run("import os; print(os.getpid())")) != first

    await until(lambda: not psutil.pid_exists(first), "the kernel's process is buried")
    await until(is_back, "the kernel came back")


async def test_its_children_are_its_own(kernel):
    """SIGCHLD and the like are as in a new process."""
    assert await kernel.run("import subprocess; print(subprocess.run(['sh', '-c', 'exit 3']).returncode)") == "3"
    code = "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))"
    assert await kernel.run(code) == "[1, 2]"
    assert await kernel.run("!echo $HOME") == str(await kernel.run("import os; print(os.path.expanduser('~'))"))


async def test_its_debugger_attaches(kernel):
    speaker = {"clientID": "test", "adapterID": "python", "pathFormat": "path", "linesStartAt1": True, "columnsStartAt1": True}
    assert (await kernel.debug("initialize", **speaker))["success"]
    assert (await kernel.debug("attach", **speaker))["success"]
    assert await kernel.run("print(6 * 7)") == "42"


async def test_two_kernels_do_not_draw_the_same_random_numbers(browser, start_kernel):
    drawn = set()
    for _ in range(2):
        kernel = await start_kernel(browser)
        drawn.add(await kernel.run("import random, uuid; print(random.random(), uuid.uuid4())"))
        await kernel.shut_down()
    assert len(drawn) == 2


async def test_it_sees_what_a_started_one_sees(shared_guest, browser, start_kernel):
    """Another variable in the specification makes it an ordinary start."""
    add_kernelspec(shared_guest, "started", env={"PYTHONNODEBUGRANGES": "1"})
    seen = []
    code = """
import os, signal, sys, threading
variables = {name: value for name, value in os.environ.items() if name not in ('JPY_PARENT_PID', 'PYTHONNODEBUGRANGES')}
ours = [name for name in sys.modules if name.startswith(('images', 'jupyter_server', 'jupyterhub', 'jupyterlab'))]
print(sys.path, sorted(variables.items()), ours, sys.argv[1], os.getsid(0) == os.getpid(), os.umask(0o22))
print([link for number in (3, 4, 5) if (link := os.readlink(f'/proc/self/fd/{number}')) and not link.startswith('anon_inode')])
print([signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE)], threading.active_count())
""".replace("sys.argv[1]", "len(sys.argv) > 2")
    for name in ("python3", "started"):
        kernel = await start_kernel(browser, name)
        seen.append((await kernel.run(code), await kernel.run(FORKED_BY)))
        await kernel.shut_down()
    (forked, forker), (started, starter) = seen
    assert (forker, starter) == ("hutch-kernels", "jupyterhub-sing")
    assert forked == started


async def test_a_specification_that_is_not_plainly_ours_goes_the_ordinary_way(shared_guest, browser, start_kernel):
    add_kernelspec(shared_guest, "own", argv=[sys.executable, "-X", "utf8", "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    kernel = await start_kernel(browser, "own")
    assert await kernel.run(FORKED_BY) == "jupyterhub-sing"
    await kernel.shut_down()


async def test_the_status_counts_kernels_and_knows_the_last_input(shared_guest, kernel, until):
    seen = []

    async def look():
        seen.append(await shared_guest.status())
        await kernel.act("interrupt")

    await kernel.run("print('begun', flush=True)\nimport time\nwhile True: time.sleep(0.01)", when_begun=look)
    assert seen[0]["kernels"] == {"total": 1, "busy": 1}
    before = seen[0]["last_input_at"]
    await kernel.run("1")
    assert (await shared_guest.status())["last_input_at"] > before


async def test_after_an_installation_kernels_are_started_afresh(guest, start_kernel, monkeypatch, tmp_path):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(packages))
    guest.switch_off()
    guest.boot()
    await guest.push(guest.session())
    async with guest.browser() as browser:
        kernel = await start_kernel(browser)
        assert await kernel.run(FORKED_BY) == "hutch-kernels"
        (packages / "just_installed.py").write_text("print('here')")
        newer = await start_kernel(browser)
        assert await newer.run(FORKED_BY) == "jupyterhub-sing"
        assert await newer.run("import just_installed") == "here"


async def test_without_the_process_that_forks_them_kernels_are_started_afresh(guest, start_kernel):
    await guest.push(guest.session())
    guest.processes("hutch-kernels")[0].kill()
    async with guest.browser() as browser:
        kernel = await start_kernel(browser)
        assert await kernel.run(FORKED_BY) == "jupyterhub-sing"
