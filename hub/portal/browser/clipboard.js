// Text both ways: by itself where the browser lets us, else by hand.

/** getScreen: the session of the moment. say: tells the person. limit: bytes. */
export class Clipboard {
  #getScreen;
  #say;
  #limit;
  #last = null;
  #text = document.getElementById("clipboard-text");
  #automatic = document.getElementById("clipboard-automatic");

  constructor(getScreen, say, limit) {
    [this.#getScreen, this.#say, this.#limit] = [getScreen, say, limit];
    document.getElementById("clipboard-send").addEventListener("click", () => this.#toDesktop(this.#text.value, true));
    document.getElementById("clipboard-take").addEventListener("click", () => this.#toBrowser());
    this.#automatic.addEventListener("change", () => this.#ask());
    for (const event of ["focus", "visibilitychange"]) window.addEventListener(event, () => this.look());
    this.#allowed("clipboard-read").then((allowed) => { this.#automatic.checked = allowed && localStorage.getItem("hutch.clipboard") === "yes"; });
  }

  /** The desktop has copied something. */
  async copied(text) {
    if (text === this.#last) return;
    this.#last = this.#text.value = text;
    if (!this.#automatic.checked || !(await this.#write(text))) this.#say("The desktop has copied text. It is under “Clipboard”.");
  }

  /** The person comes back to the desktop: perhaps with something in the clipboard. */
  async look() {
    if (!this.#automatic.checked || !document.hasFocus() || this.#getScreen()?.viewOnly !== false) return;
    try {
      const text = await navigator.clipboard.readText();
      if (text && text !== this.#last) this.#toDesktop(text, false);
    } catch { /* taken back, or not text */ }
  }

  #toDesktop(text, byHand) {
    const screen = this.#getScreen();
    if (!screen || screen.viewOnly) return this.#say("Only who drives the desktop may paste into it.");
    const bytes = new TextEncoder().encode(text).length;
    if (bytes > this.#limit) return this.#say(`That is ${kib(bytes)} of text; the clipboard takes up to ${kib(this.#limit)}.`);
    this.#last = this.#text.value = text;
    screen.clipboardPasteFrom(text);
    if (byHand) this.#say("It is in the desktop's clipboard: paste it there.");
  }

  async #toBrowser() {
    if (await this.#write(this.#text.value)) return this.#say("It is in your own clipboard.");
    this.#text.select();
    this.#say("This browser does not let a page copy. The text is selected: copy it yourself.");
  }

  /** Reading asks the person, once; so it happens after a click of theirs. */
  async #ask() {
    if (this.#automatic.checked) {
      try {
        await navigator.clipboard.readText();
      } catch {
        this.#automatic.checked = false;
        this.#say("This browser does not let Hutch read the clipboard. You can paste into the box instead.");
      }
    }
    localStorage.setItem("hutch.clipboard", this.#automatic.checked ? "yes" : "no");
    this.look();
  }

  async #allowed(name) {
    try {
      return (await navigator.permissions.query({ name })).state === "granted";
    } catch {
      return false;
    }
  }

  async #write(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
}

function kib(bytes) { return `${Math.ceil(bytes / 1024)} KiB`; }
