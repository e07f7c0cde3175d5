"""The situations. `from pytest_spawner_contract.situations import *` in a module that has a fixture `driver`, of scope module.

A docstring's first line is the situation, as the table shows it; the rest is what JupyterHub (6.1.1, [file] function) does in it.
"""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from .driver import Driver
from .hub import Hub, Server, until


def test_start_and_stop(server: Server) -> None:
    """A start ends with one thing that runs and answers, a stop with none that runs.

    [user.py] spawn: what start() returns is asked for an answer, once, and then served.
    """
    thing = server.started()
    assert server.running() == [thing] and server.answers()
    server.stopped()
    assert server.running() == []


def test_poll_during_a_start(server: Server, driver: Driver) -> None:
    """poll() is a status before a start, None from its first moment on, and a status again after the stop.

    [user.py] stop: a start that is broken off is cleaned up by stop() only if poll() says None; [spawner.py] a status while it runs
    means that it has ended.
    """
    assert server.ask("poll") is not None
    server.start(driver.hold_next(4))
    until(driver.held, "the start is under way")
    assert server.ask("poll") is None
    server.until_ready()
    assert server.ask("poll") is None
    server.stopped()
    assert server.ask("poll") is not None


def test_hub_answers_during_a_start(server: Server, driver: Driver) -> None:
    """A start that waits for what is behind the spawner does not hold up the hub.

    [app.py] the hub is one process with one event loop, which serves everybody.
    """
    server.start(driver.hold_next(4))
    until(driver.held, "the start is under way")
    assert server.hub.api("GET", "").status_code == 200
    assert driver.held(), "the hub answered only when the start was over"
    server.until_ready()


def test_start_fails(server: Server, driver: Driver) -> None:
    """A thing that fails to come up is not left behind (T1).

    [user.py] spawn, stop: when start() raises and poll() says that nothing runs, stop() is never called.
    """
    server.start(driver.fail_next())
    server.until_idle()
    until(lambda: not server.running(), "nothing runs")
    driver.restore()
    server.started()


def test_start_is_cancelled(server: Server, driver: Driver) -> None:
    """A stop during the start: nothing runs in the end, and the next start has one thing (T2).

    [apihandlers/users.py] delete cancels start() at whatever line it waits, then asks poll(), then perhaps stop().
    """
    server.start(driver.hold_next(4))
    until(driver.held, "the start is under way")
    server.stop()
    server.until_idle()
    until(lambda: not driver.held(), "what was asked for is done")
    until(lambda: not server.running(), "nothing runs")
    server.started()


def test_start_times_out(server: Server, driver: Driver) -> None:
    """A start that takes longer than start_timeout: the next start has one thing (T5).

    [user.py] spawn: asyncio.wait_for cancels start(), since 6.0.
    """
    server.start({"start_timeout": 2} | driver.hold_next(12))
    until(driver.held, "the start is under way")
    server.until_idle()
    until(lambda: not driver.held(), "what was asked for is done")
    server.started()


def test_hub_is_killed_during_a_start(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """A hub killed while a thing is made finds it again: the next start has one thing (T4).

    [user.py] spawn: the state is saved only after start() has returned, so the hub that follows has none.
    """
    server.start(driver.hold_next(4))
    until(driver.held, "the start is under way")
    jupyterhub.kill()
    until(lambda: not driver.held(), "what was asked for is done")
    jupyterhub.start()
    server.until_settled()
    if not server.ready():
        server.start()
    server.until_ready()
    server.one_thing()


def test_stop_fails(server: Server, driver: Driver) -> None:
    """A stop that fails: what still runs is still served, or is stopped in the end (T3).

    [handlers/base.py] stop_single_user: what stop() raises is swallowed, the answer is 204, and the state is wiped.
    """
    server.started()
    driver.fail_stops(2)
    server.stop()
    server.until_true_to_the_hub()


def test_hub_is_killed_during_a_stop(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """A hub killed while it stops something: what still runs afterwards is still served.

    [user.py] stop: the row of the server goes when stop() has returned.
    """
    server.started()
    driver.hold_stops(4)
    server.stop()
    until(lambda: server.pending() == "stop", "the stop is under way")
    jupyterhub.kill()
    driver.restore()
    jupyterhub.start()
    server.until_true_to_the_hub()


def test_hub_restarts(server: Server, jupyterhub: Hub) -> None:
    """What runs when the hub is killed is served again, untouched; what is stopped stays so.

    [app.py] init_spawners: load_state(), poll() and get_url() on a new object are all that is asked.
    """
    other = Server(jupyterhub, server.driver, server.user, "stopped")
    other.started()
    other.stopped()
    before = set(server.things())
    server.start()
    server.until_ready()
    running = server.running()
    jupyterhub.kill()
    jupyterhub.start()
    server.until_ready()
    assert len(running) == 1
    assert server.running() == running
    assert server.answers()
    assert not other.ready() and before <= set(server.things())


def test_cut_off_while_the_hub_starts(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """What is behind the spawner cannot be asked while the hub starts: nothing that runs is forgotten (T6).

    [app.py] check_spawner: an exception in poll() is "assuming the spawner is not running", as is any status.
    """
    thing = server.started()
    jupyterhub.kill()
    driver.cut_off()
    jupyterhub.start()
    server.until_settled()
    driver.restore()
    server.until_ready()
    assert server.running() == [thing]


def test_cut_off_while_it_runs(server: Server, driver: Driver) -> None:
    """What is behind the spawner cannot be asked for a while: poll() does not raise, and nothing is given up.

    [spawner.py] poll_and_notify: a status ends the server for the hub; an unknown is none.
    """
    thing = server.started()
    driver.cut_off()
    assert server.ask("poll") is None
    driver.restore()
    assert server.ready() and server.running() == [thing]


def test_slow_while_the_hub_starts(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """A thing that does not answer while the hub starts is not stopped for that (T7).

    [app.py] check_spawner: after http_timeout the hub calls stop(), however healthy the thing is. Nobody has asked for it.
    """
    thing = server.started()
    jupyterhub.kill()
    driver.hang(thing)
    jupyterhub.start()
    until(lambda: f"{server.user}:{server.name} does not appear to be running" in jupyterhub.log(), "the hub has given it up")
    server.until_settled()
    driver.restore()
    assert server.running() == [thing]


def test_ends_by_itself(server: Server, driver: Driver) -> None:
    """A thing that ends by itself is found ended, and can be started again.

    [spawner.py] poll_and_notify; as long as poll() says None, a start is refused as "already running" ([handlers/base.py]).
    """
    driver.end(server.started())
    server.until_idle()
    server.started()


def test_ends_while_the_hub_is_down(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """A thing that ends while the hub is down is found ended at its start, and can be started again.

    [app.py] check_spawner.
    """
    thing = server.started()
    jupyterhub.kill()
    driver.end(thing)
    jupyterhub.start()
    server.until_idle()
    server.started()


def test_vanishes(server: Server, driver: Driver) -> None:
    """A thing that was removed behind the spawner's back is found gone; stop() bears it, and so does the next start.

    [user.py] stop; a poll() that is not certain of an absence would leave a server that can neither be used nor started.
    """
    driver.vanish(server.started())
    server.until_idle()
    server.started()
    driver.vanish(server.one_thing())
    server.stopped()
    server.started()


def test_side_by_side(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """Two servers of one user started at once are two things at two addresses; a stop ends its own.

    [user.py] spawners: one object per server name, which share the user and nothing else.
    """
    other = Server(jupyterhub, driver, server.user, "slides")
    server.start()
    other.start()
    server.until_ready()
    other.until_ready()
    assert len(server.running()) == 2 and server.ask("url").split("/user/")[0] != other.ask("url").split("/user/")[0]
    other.stopped()
    assert server.ready() and server.answers() and len(server.running()) == 1


def test_state_round_trip(server: Server) -> None:
    """get_state() is JSON; load_state() of it, in a new object, says the same and knows that it runs; an empty one is borne.

    [orm.py] Spawner.state is JSON in the hub's database; [user.py] _new_spawner loads it, `{}` when there is none.
    """
    server.started()
    state = server.ask("state")
    assert state["before"] == state["after"] and state["poll"] is None


def test_moved_while_the_hub_was_down(server: Server, jupyterhub: Hub, driver: Driver) -> None:
    """A thing whose address the hub no longer knows is served at the one that it has.

    [app.py] check_spawner: get_url() is asked when poll() says None; without an own one the address in the database stands.
    """
    driver.check_can_move()
    thing = server.started()
    jupyterhub.kill()
    with closing(sqlite3.connect(jupyterhub.folder / "jupyterhub.sqlite")) as database, database:
        mine = "SELECT server_id FROM spawners JOIN users ON users.id = user_id WHERE users.name = ?"
        database.execute(f"UPDATE servers SET ip = '127.0.0.1', port = 9 WHERE id IN ({mine})", [server.user])  # noqa: S608
    jupyterhub.start()
    server.until_ready()
    assert server.running() == [thing] and server.answers()


def test_tokens_end(server: Server) -> None:
    """The tokens of a server end with each stop.

    [user.py] spawn makes one at each start; stop() keeps them where will_resume is true, without an expiry.
    """
    for _ in range(3):
        server.started()
        server.stopped()
    tokens = server.hub.api("GET", f"users/{server.user}/tokens").json()["api_tokens"]
    assert [token["note"] for token in tokens if token["note"].startswith("Server at")] == []


def test_progress(server: Server, driver: Driver) -> None:
    """progress() bears being asked before a start, by several pages during one, and after it; each gets the whole story.

    [apihandlers/users.py] SpawnProgressAPIHandler calls it anew for each page; what it raises breaks the page.
    """
    events = server.ask("progress")
    server.start(driver.hold_next(4))
    with ThreadPoolExecutor() as pages:
        first = pages.submit(server.progress)
        until(driver.held, "the start is under way")
        second = pages.submit(server.progress)
    assert first.result()[-1]["ready"] and first.result() == second.result()
    events += first.result()
    assert all(0 <= event.get("progress", 0) <= 100 and isinstance(event["message"], str) for event in events), json.dumps(events)
    assert server.progress()[-1]["ready"]


def test_delete_forever(server: Server) -> None:
    """Deleting a server leaves nothing of it.

    [apihandlers/users.py] delete with "remove": the row is dropped whatever delete_forever() does; afterwards nobody knows of it.
    """
    server.started()
    server.stop(remove=True)
    until(lambda: not server.things(), "nothing exists")


def test_user_is_deleted(server: Server) -> None:
    """Deleting a user leaves nothing of their servers, stopped ones included.

    [apihandlers/users.py] UserAPIHandler.delete stops what runs and calls delete_forever() for each; errors are swallowed.
    """
    other = Server(server.hub, server.driver, server.user, "stopped")
    other.started()
    other.stopped()
    server.start()
    server.until_ready()
    server.stopped()
    server.hub.api("DELETE", f"users/{server.user}").raise_for_status()
    until(lambda: not server.things(), "nothing exists")


def test_renamed(server: Server) -> None:
    """A stopped server that is renamed keeps its thing, or the rename is refused.

    [apihandlers/users.py] patch: rename() is the one chance to say no (6.0); what is found by its name is lost otherwise.
    """
    server.started()
    server.stopped()
    kept = server.things()
    renamed = server.hub.api("PATCH", server.path, json={"name": "slides"})
    if renamed.status_code < 400:
        server.name, server.path = "slides", f"users/{server.user}/servers/slides"
    server.start()
    server.until_ready()
    server.one_thing()
    assert set(kept) <= set(server.things())
