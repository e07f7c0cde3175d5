// Keys that a browser keeps to itself, keys to hold, the keyboard on the screen, and which layout the person types on.

/** [keysym, code]: what X calls a key, and where it sits. */
const KEYS = {
  Ctrl: [0xffe3, "ControlLeft"], Alt: [0xffe9, "AltLeft"], AltGr: [0xfe03, "AltRight"], Super: [0xffeb, "MetaLeft"], Shift: [0xffe1, "ShiftLeft"],
  Esc: [0xff1b, "Escape"], Tab: [0xff09, "Tab"], Del: [0xffff, "Delete"], Enter: [0xff0d, "Enter"], Backspace: [0xff08, "Backspace"],
  Print: [0xff61, "PrintScreen"], T: [0x74, "KeyT"], F4: [0xffc1, "F4"], F11: [0xffc8, "F11"], Space: [0x20, "Space"],
  Left: [0xff51, "ArrowLeft"], Up: [0xff52, "ArrowUp"], Right: [0xff53, "ArrowRight"], Down: [0xff54, "ArrowDown"],
};
const STORED = "hutch.layout";

/** getScreen: the session of the moment, or null. */
export function keyboardOf(getScreen) {
  const held = new Set();

  function press(name, down) { getScreen()?.sendKey(...KEYS[name], down); }

  function combine(names) {
    names.forEach((name) => press(name, true));
    [...names].reverse().forEach((name) => press(name, false));
  }

  function hold(name) {
    if (held.delete(name)) press(name, false);
    else { held.add(name); press(name, true); }
    document.querySelectorAll("[data-hold]").forEach((button) => button.setAttribute("aria-pressed", held.has(button.dataset.hold)));
  }

  function letGo() { [...held].forEach(hold); }

  /** A sign that no key need have: the desktop finds a way to it. */
  function type(sign) {
    const point = sign.codePointAt(0);
    getScreen()?.sendKey(point < 0x100 ? point : 0x1000000 | point, null);
    letGo();
  }

  return { combine(names) { combine(names); letGo(); }, hold, type, letGo };
}

// --- the layout

/** The person's own choice, or what their keyboard and language make likely. options: of the select, as the server lists them. */
export async function likelyLayout(options) {
  const chosen = localStorage.getItem(STORED);
  if (options.some(({ value }) => value === chosen)) return chosen;
  let map = null;
  try {
    map = await navigator.keyboard?.getLayoutMap();
  } catch { /* not in every browser, nor on every page */ }
  return guess(options, map, navigator.languages ?? [navigator.language]);
}

export function rememberLayout(layout) { localStorage.setItem(STORED, layout); }

// where layouts differ, in the order of `data-keys`
const TELLING = ["Backquote", "Minus", "Equal", "BracketLeft", "BracketRight", "Semicolon", "Quote", "Backslash", "KeyQ", "KeyY", "Digit1", "Slash"];

function guess(options, map, languages) {
  const score = (option) => {
    const keys = [...option.dataset.keys];
    const alike = map ? TELLING.filter((code, place) => map.get(code) === keys[place]).length : 0;
    const spoken = option.dataset.languages.split(" ");
    const rank = languages.findIndex((language) => spoken.includes(language) || spoken.includes(language.split("-")[0]));
    const exact = languages.some((language) => spoken.includes(language));
    // of two that fit the keys alike, the one whose language comes first
    return alike + (rank < 0 ? 0 : 0.9 / (rank + 1)) + (exact ? 0.05 : 0);
  };
  return options.reduce((best, one) => (score(one) > score(best) ? one : best)).value;
}
