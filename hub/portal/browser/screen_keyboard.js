// The keyboard on the screen, for hands without one. Loaded when it is asked for.

import Keyboard from "simple-keyboard";
import czech from "simple-keyboard-layouts/build/layouts/czech";
import english from "simple-keyboard-layouts/build/layouts/english";
import french from "simple-keyboard-layouts/build/layouts/french";
import german from "simple-keyboard-layouts/build/layouts/german";
import hungarian from "simple-keyboard-layouts/build/layouts/hungarian";
import italian from "simple-keyboard-layouts/build/layouts/italian";
import norwegian from "simple-keyboard-layouts/build/layouts/norwegian";
import polish from "simple-keyboard-layouts/build/layouts/polish";
import spanish from "simple-keyboard-layouts/build/layouts/spanish";
import swedish from "simple-keyboard-layouts/build/layouts/swedish";

const BY_LAYOUT = {
  be: french, ch: german, "ch(fr)": french, cz: czech, de: german, dk: norwegian, es: spanish, fi: swedish, fr: french, hu: hungarian,
  it: italian, no: norwegian, pl: polish, se: swedish,
};
const NAMED = { "{bksp}": "Backspace", "{enter}": "Enter", "{tab}": "Tab", "{space}": "Space", "{esc}": "Esc", "{left}": "Left", "{up}": "Up", "{right}": "Right", "{down}": "Down" };
const HELD = { "{ctrl}": "Ctrl", "{alt}": "Alt", "{altgr}": "AltGr", "{super}": "Super" };
const LAST_ROW = "{esc} {ctrl} {super} {alt} {space} {altgr} {left} {up} {down} {right}";
const WORDS = {
  "{bksp}": "⌫", "{enter}": "↵", "{tab}": "⇥", "{space}": " ", "{lock}": "Caps", "{shift}": "Shift", "{esc}": "Esc", "{ctrl}": "Ctrl", "{alt}": "Alt",
  "{altgr}": "AltGr", "{super}": "Super", "{left}": "←", "{up}": "↑", "{down}": "↓", "{right}": "→",
};

/** Inside an element of the class `simple-keyboard`; returns what changes its layout. */
export function screenKeyboard(keys) {
  let shift = "";
  const keyboard = new Keyboard({
    onKeyPress(button) {
      if (button === "{shift}" || button === "{lock}") {
        shift = shift ? "" : button;
        keyboard.setOptions({ layoutName: shift ? "shift" : "default" });
      } else if (HELD[button]) {
        keys.hold(HELD[button]);
      } else {
        if (NAMED[button]) keys.combine([NAMED[button]]);
        else keys.type(button);
        if (shift === "{shift}") keyboard.setOptions({ layoutName: "default" });
        if (shift === "{shift}") shift = "";
      }
    },
    display: WORDS,
    mergeDisplay: true,
    preventMouseDownDefault: true,
    theme: "simple-keyboard hg-theme-default",
  });
  return (layout) => {
    const rows = (BY_LAYOUT[layout] ?? english).layout;
    const withLast = Object.fromEntries(Object.entries(rows).map(([name, lines]) => [name, [...lines.slice(0, -1), LAST_ROW]]));
    keyboard.setOptions({ layout: withLast });
  };
}
