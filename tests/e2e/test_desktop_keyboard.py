"""Keys are pressed on a screen whose keyboard has the person's layout; there a browser shows a desktop; what arrives on it is read.

Nothing stands for the keyboard: the browser runs on an X server of its own, which is told which keys go down, and takes from
that server's layout what they mean, dead keys, AltGr and Caps Lock as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import browser
import pytest
from desktop_stand_in import StandIn, set_layout, shown, xvnc
from playwright.sync_api import Page, expect, sync_playwright
from running_hub import until
from Xlib import X
from Xlib.display import Display
from Xlib.ext import xtest

# as X numbers the keys of a keyboard: `, 1 to =; Q to ]; A to \; <, Z to /
ROWS = ([49, *range(10, 22)], range(24, 36), [*range(38, 49), 51], [94, *range(52, 62)])
SHIFT, ALTGR, CAPS, SPACE, ENTER = 50, 108, 66, 65, 36
DEAD = "\N{DOTTED CIRCLE}"
US = ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'\\", "<zxcvbnm,./")
NAMES = {name: key for row, names in zip(ROWS, US, strict=True) for key, name in zip(row, names, strict=True)} | {" ": SPACE}
# of two whose keys a browser describes alike, the language decides, which is English here
ALIKE = {"us(intl)": "us", "se": "fi"}
KEYS_OF_BROWSER = """async () => {
  const map = await navigator.keyboard.getLayoutMap();
  const codes = ["Backquote", "Minus", "Equal", "BracketLeft", "BracketRight", "Semicolon", "Quote", "Backslash"];
  return [...codes, "KeyQ", "KeyY", "Digit1", "Slash"].map((code) => map.get(code)).join("");
}"""
EVENT = re.compile(r"^KeyPress event.*?XFilterEvent returns: (\w+)", re.DOTALL | re.MULTILINE)
BYTES = re.compile(r"XmbLookupString gives \d+ bytes: \(([0-9a-f ]+)\)")


@dataclass(frozen=True)
class Table:
    """What a layout writes. rows: by each key alone. The others: the key as it is named on a US keyboard, and what comes of it;
    dead: a key, `S` or `A` before it for Shift or AltGr, and the key that follows."""

    rows: tuple[str, str, str, str]
    shift: dict[str, str] = field(default_factory=dict)
    altgr: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    caps: dict[str, str] = field(default_factory=dict)


TABLES = {
    "us": Table(
        US,
        shift={"2": "@", "`": "~", "[": "{", "]": "}", "\\": "|", "q": "Q"},
        caps={"q": "Q", "1": "1", ";": ";"},
    ),
    "us(intl)": Table(
        (f"{DEAD}1234567890-=", "qwertyuiop[]", f"asdfghjkl;{DEAD}\\", "\\zxcvbnm,./"),
        altgr={"5": "€", "s": "ß"},
        dead={"'e": "é", "`a": "à", "S6e": "ê", "S`n": "ñ", "S'u": "ü"},
    ),
    "gb": Table(
        ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'#", "\\zxcvbnm,./"),
        shift={"2": '"', "3": "£", "'": "@", "\\": "~", "<": "|", "[": "{", "]": "}"},
        altgr={"4": "€"},
        caps={"q": "Q", "'": "'"},
    ),
    "de": Table(
        (f"{DEAD}1234567890ß{DEAD}", "qwertzuiopü+", "asdfghjklöä#", "<yxcvbnm,.-"),
        shift={"2": '"', "3": "§", "7": "/", "\\": "'", "-": "?", ";": "Ö"},
        altgr={"q": "@", "e": "€", "7": "{", "8": "[", "9": "]", "0": "}", "-": "\\", "]": "~", "<": "|", "m": "µ"},
        dead={"`e": "ê", "=e": "é", "S=a": "à", "` ": "^"},
        caps={"q": "Q", ";": "Ö", "1": "1"},
    ),
    "fr": Table(
        ("²&é\"'(-è_çà)=", f"azertyuiop{DEAD}$", "qsdfghjklmù*", "<wxcvbn,;:!"),
        shift={"1": "1", "0": "0", "-": "°", "/": "§", "m": "?"},
        altgr=dict(zip("234567890-=e", "~#{[|`\\^@]}€", strict=True)),
        dead={"[o": "ô", "S[u": "ü"},
        caps={"q": "A", "2": "É"},
    ),
    "es": Table(
        ("º1234567890'¡", f"qwertyuiop{DEAD}+", f"asdfghjklñ{DEAD}ç", "<zxcvbnm,.-"),
        shift={"=": "¿", ";": "Ñ", "7": "/"},
        altgr={"`": "\\", "1": "|", "2": "@", "3": "#", "4": "~", "e": "€", "[": "[", "]": "]", "'": "{", "\\": "}"},
        dead={"'a": "á", "[e": "è", "S'u": "ü", "S[o": "ô"},
        caps={";": "Ñ", "q": "Q"},
    ),
    "ch": Table(
        (f"§1234567890'{DEAD}", f"qwertzuiopü{DEAD}", "asdfghjklöä$", "<yxcvbnm,.-"),
        shift={"[": "è", ";": "é", "'": "à", "\\": "£", "2": '"'},
        altgr={"2": "@", "3": "#", "7": "|", "e": "€", "[": "[", "'": "{", "\\": "}", "<": "\\"},
        dead={"=e": "ê", "]e": "ë", "A=n": "ñ", "S=a": "à"},
        caps={";": "Ö", "[": "Ü", "q": "Q"},
    ),
    "se": Table(
        (f"§1234567890+{DEAD}", f"qwertyuiopå{DEAD}", "asdfghjklöä'", "<zxcvbnm,.-"),
        shift={"4": "¤", "7": "/", "[": "Å"},
        altgr={"2": "@", "7": "{", "8": "[", "9": "]", "0": "}", "-": "\\", "e": "€", "<": "|"},
        dead={"=e": "é", "]u": "ü", "S]o": "ô", "A]n": "ñ"},
        caps={"[": "Å", "q": "Q"},
    ),
    "it": Table(
        ("\\1234567890'ì", "qwertyuiopè+", "asdfghjklòàù", "<zxcvbnm,.-"),
        shift={"[": "é", ";": "ç", "=": "^", "3": "£"},
        altgr={";": "@", "'": "#", "[": "[", "]": "]", "e": "€", "=": "~", "-": "`"},
        caps={"q": "Q", ";": "Ò"},
    ),
}  # fmt: skip


@dataclass
class Person:
    """A browser that shows the desktop, the keyboard before it, and what a program on the desktop has heard."""

    keyboard: Display
    screen: str
    page: Page
    stand_in: StandIn
    heard: Path

    def press(self, *keys: int) -> None:
        """One after another down, then up the other way round."""
        for kind, order in ((X.KeyPress, keys), (X.KeyRelease, reversed(keys))):
            for key in order:
                xtest.fake_input(self.keyboard, kind, key)
        self.keyboard.sync()

    def text(self) -> str:
        """What was typed, as a program's input method gives it."""
        events = [match for match in EVENT.finditer(self.heard.read_text()) if match[1] == "False"]
        found = [BYTES.search(event[0]) for event in events]
        return "".join(bytes.fromhex(one[1].replace(" ", "")).decode() for one in found if one)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    for program in ("Xtigervnc", "xev", "setxkbmap", "chromium"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: tools/setup --test installs it")
    near, far = tmp_path_factory.mktemp("near"), tmp_path_factory.mktemp("far")
    with xvnc(near) as (_, screen), shown(far) as (stand_in, url), (far / "heard").open("wb") as heard:
        environment = {**os.environ, "DISPLAY": stand_in.display, "LC_ALL": "C.UTF-8"}
        listener = subprocess.Popen(["xev", "-geometry", "1024x640+0+0", "-event", "keyboard"], env=environment, stdout=heard)
        arguments = [one for one in browser.ARGUMENTS if one != "--headless"] + ["--kiosk", f"--app={url}"]
        with sync_playwright() as playwright:
            running = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), headless=False, args=arguments, env={**os.environ, "DISPLAY": screen}
            )
            page = running.new_context(no_viewport=True).new_page()
            page.goto(url)
            expect(page.locator("body")).to_have_attribute("data-connection", "open")
            yield Person(Display(screen), screen, page, stand_in, far / "heard")
            running.close()
        listener.terminate()
        listener.wait()


@pytest.mark.parametrize("layout", TABLES)
def test_every_key_of_a_layout_arrives_as_what_it_writes(person: Person, layout: str) -> None:
    set_layout(person.screen, layout)
    page, table = person.page, TABLES[layout]
    keys = page.locator(f'#layout option[value="{layout}"]').get_attribute("data-keys")
    until(lambda: page.evaluate(KEYS_OF_BROWSER) == keys, f"the browser knows of {layout}: {page.evaluate(KEYS_OF_BROWSER)}", 10)
    # as if it were the first time
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.locator("body")).to_have_attribute("data-connection", "open")
    assert page.locator("#layout").input_value() == ALIKE.get(layout, layout)
    choose(page, layout)
    until(lambda: person.stand_in.layouts and person.stand_in.layouts[-1] == layout, "the desktop has the layout", 10)
    texts = wanted(table)
    assert {name: written(person, chords, texts[name]) for name, chords in presses(table).items()} == texts


def choose(page: Page, layout: str) -> None:
    """As the person does, while the desktop is open; and back to the desktop."""
    page.get_by_role("button", name="Keyboard", exact=True).click()
    page.get_by_label("Layout of your keyboard").select_option(layout)
    page.keyboard.press("Escape")
    page.locator("#stage canvas").focus()


Chord = tuple[int, ...]


def presses(table: Table) -> dict[str, list[Chord]]:
    signs = [(key, sign) for row, line in zip(ROWS, table.rows, strict=True) for key, sign in zip(row, line, strict=True)]
    return {
        "alone": [(key,) for key, sign in signs if sign != DEAD],
        "shift": [(SHIFT, NAMES[key]) for key in table.shift],
        "altgr": [(ALTGR, NAMES[key]) for key in table.altgr],
        "dead": [chord for keys in table.dead for chord in (_dead(keys[:-1]), (NAMES[keys[-1]],))],
        "caps": [(CAPS,), *((NAMES[key],) for key in table.caps), (CAPS,)],
    }


def _dead(keys: str) -> Chord:
    held = {"S": (SHIFT,), "A": (ALTGR,)}.get(keys[0], ())
    return (*held, NAMES[keys[-1]])


def wanted(table: Table) -> dict[str, str]:
    groups = {"shift": table.shift, "altgr": table.altgr, "dead": table.dead, "caps": table.caps}
    return {"alone": "".join(table.rows).replace(DEAD, "")} | {name: "".join(one.values()) for name, one in groups.items()}


def written(person: Person, chords: list[Chord], wanted: str) -> str:
    before = len(person.text())
    for chord in [*chords, (ENTER,)]:
        person.press(*chord)
    with suppress(AssertionError):  # what came instead is told by who compares it
        until(lambda: person.text()[before:] == f"{wanted}\r", "all that was typed has arrived", 10)
    return person.text()[before:].removesuffix("\r")
