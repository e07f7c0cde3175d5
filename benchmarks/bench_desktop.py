"""A desktop in the browser: from the page's address to its first whole picture, and from a key to the pixel that it changes.

Beside it, in the same minutes and in the same browser: noVNC and websockify straight to an Xvnc of the same kind, without a hub, a
proxy, a relay or an agent, its page bundled as ours is. The sides take turns; both pages have been there before, so what a browser
keeps it has.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import HERE_BIN, ROOT, Figure, private_folder, report, spread, until

# isort: split
# which `common` has made to be found
import browser
from facility_hub import FacilityHub, Visitor, facility
from playwright.sync_api import BrowserContext, Page
from running_hub import free_port

from hub.services import portal_address
from images.guest.desktop import MANNERS

ROUNDS, KEYS = 9, 40
RELAY = "c.Hutch.desktop_relays = 1"
SHOWN_LIMIT, SHOWN_MORE_SECONDS, KEY_LIMIT = 1.2, 0.3, 1.1
VIEWPORT = {"width": 1280, "height": 800}
# fills the screen, and changes its colour with every key
COLOURS = """
from Xlib import X, display
server = display.Display()
screen = server.screen()
looks = {"background_pixel": 0x2060A0, "event_mask": X.KeyPressMask, "override_redirect": 1}
window = screen.root.create_window(0, 0, 4000, 4000, 0, X.CopyFromParent, **looks)
window.map()
server.flush()
colours, place = (0x2060A0, 0xA06020), 0
while True:
    if server.next_event().type == X.KeyPress:
        place = 1 - place
        window.change_attributes(background_pixel=colours[place])
        window.clear_area()
        server.flush()
"""
# when the middle of the picture first has one of its colours, and how long after a key it has another
WATCHER = """
window.middle = () => {
  const canvas = document.querySelector("canvas:not(.still)");
  if (!canvas?.width) return 0;
  const [red, green, blue] = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
  return red + green + blue > 100 ? red : 0;
};
const look = () => { if (middle()) window.shown = performance.now(); else requestAnimationFrame(look); };
requestAnimationFrame(look);
window.addEventListener("keydown", () => {
  const before = middle(), pressed = performance.now();
  window.took = null;
  const changed = () => {
    if (middle() !== before) window.took = performance.now() - pressed;
    else requestAnimationFrame(changed);
  };
  requestAnimationFrame(changed);
}, true);
"""
PLAIN = """
import RFB from "@novnc/novnc";
const rfb = new RFB(document.getElementById("screen"), `ws://${location.host}/websockify`);
rfb.scaleViewport = rfb.resizeSession = true;
rfb.addEventListener("connect", () => rfb.focus());
"""
PLAIN_PAGE = """<!doctype html>
<body style="margin:0"><div id="screen" style="height:100vh"></div><script type="module" src="page.js"></script>"""


@contextmanager
def plain(folder: Path) -> Iterator[str]:
    """noVNC's page, websockify and an Xvnc on TCP."""
    (folder / "index.html").write_text(PLAIN_PAGE)
    bundle = [
        ROOT / "node_modules/.bin/esbuild",
        "--bundle",
        "--format=esm",
        "--minify",
        "--log-level=error",
        f"--outfile={folder}/page.js",
    ]
    subprocess.run(bundle, input=PLAIN, text=True, cwd=ROOT, check=True)
    rfb, web = free_port(), free_port()
    xvnc = ["Xtigervnc", "-SecurityTypes", "None", "-rfbport", str(rfb), "-localhost", "-nolisten", "tcp", *MANNERS.split()]
    started = [subprocess.Popen(xvnc, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)]
    try:
        assert started[0].stdout
        display = f":{started[0].stdout.readline().strip()}"
        environment = {**os.environ, "DISPLAY": display}
        started.append(subprocess.Popen([sys.executable, "-c", COLOURS], env=environment))
        websockify = [HERE_BIN / "websockify", "--web", folder, f"127.0.0.1:{web}", f"127.0.0.1:{rfb}"]
        started.append(subprocess.Popen(websockify, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: _listens(web), "websockify listens")
        yield f"http://127.0.0.1:{web}/"
    finally:
        for one in reversed(started):
            one.terminate()
            one.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def instance_with_desktop(hub: FacilityHub) -> tuple[Visitor, str]:
    owner = hub.visitor()
    instance = hub.launched(owner)
    (home,) = (hub.devcloud.state_dir / "servers").glob("*/home")
    session = home / ".config" / "hutch" / "desktop"
    session.parent.mkdir(parents=True)
    session.write_text(f"#!{sys.executable}\n{COLOURS}")
    session.chmod(0o755)
    return owner, f"{portal_address(f'http://localhost:{hub.port}')}instances/{instance.id}/desktop"


def sign_in(context: BrowserContext, hub: FacilityHub, owner: Visitor) -> None:
    session, _ = hub.sign_on(owner.login)
    context.add_cookies(
        [{"name": one.name, "value": one.value or "", "domain": "localhost", "path": one.path} for one in session.cookies]
    )


def shown_seconds(page: Page, url: str) -> float:
    page.goto("about:blank")
    page.goto(url)
    return until(lambda: page.evaluate("window.shown"), "a picture is there") / 1000


def key_seconds(page: Page) -> list[float]:
    taken = []
    for _ in range(KEYS):
        page.keyboard.press("a")
        taken.append(until(lambda: page.evaluate("window.took"), "the picture has changed", 10) / 1000)
    return taken


def main() -> None:
    if missing := [name for name in ("chromium", "Xtigervnc") if not shutil.which(name)]:
        sys.exit(f"{', '.join(missing)} is missing: tools/setup --test installs it")
    shown: dict[str, list[float]] = {"Hutch": [], "plain": []}
    keys: dict[str, list[float]] = {"Hutch": [], "plain": []}
    with private_folder() as folder, facility(folder / "hub", RELAY, payload="agent") as hub, browser.chromium() as chromium:
        (folder / "plain").mkdir()
        with plain(folder / "plain") as plain_url:
            owner, url = instance_with_desktop(hub)
            context = chromium.new_context(viewport=VIEWPORT)
            context.add_init_script(WATCHER)
            sign_in(context, hub, owner)
            page = context.new_page()
            sides: dict[str, Callable[[], float]] = {
                "Hutch": lambda: shown_seconds(page, url),
                "plain": lambda: shown_seconds(page, plain_url),
            }
            for number in range(ROUNDS + 1):
                for name, show in sides.items():
                    took = show()
                    typed = key_seconds(page)
                    # the first time the browser has nothing yet, and the desktop starts
                    if number:
                        shown[name].append(took)
                        keys[name] += typed
            context.close()
    for what, figures in (("first picture", shown), ("key to pixel", keys)):
        for name, values in figures.items():
            print(f"{what}, {name}: {spread(values)} s")
    median = {name: (statistics.median(shown[name]), statistics.median(keys[name])) for name in shown}
    (ours, our_key), (theirs, their_key) = median["Hutch"], median["plain"]
    report(
        Figure(
            "desktop shown",
            round(ours, 3),
            "s",
            round(SHOWN_LIMIT * theirs + SHOWN_MORE_SECONDS, 3),
            "1.2 x noVNC + websockify + 0.3 s",
        ),
        Figure("key to pixel", round(our_key / their_key, 3), "x", KEY_LIMIT, "noVNC + websockify straight to Xvnc"),
    )


if __name__ == "__main__":
    main()
