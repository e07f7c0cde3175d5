// One RFB session on the page: noVNC, and what it lacks. Takes hold of parts of noVNC 1.7 that are not public.

import RFB from "@novnc/novnc";

const FENCE_IS_REQUEST = 1 << 31;
const FENCE_HEADER_BYTES = 8;
const MODIFIERS = {
  ShiftLeft: "Shift", ShiftRight: "Shift", ControlLeft: "Control", ControlRight: "Control", AltLeft: "Alt", MetaLeft: "Meta", MetaRight: "Meta",
};

export class Screen extends RFB {
  /** Every pixel of the screen before the eyes, not only every CSS pixel. */
  sharp = false;
  /** Called for every whole frame. */
  onframe = null;
  #asked = 0;
  #answered = null;
  #dead = "";

  constructor(place, pipe) {
    super(place, pipe, { shared: true });
    // else a key that is down when one leaves the picture stays down in the desktop
    this._canvas.addEventListener("blur", () => this._keyboard._allKeysUp());
    this._canvas.addEventListener("keydown", (event) => this.#catchUp(event), true);
    this._canvas.setAttribute("role", "application");
    this._canvas.setAttribute("aria-label", "Desktop. Ctrl, Alt, Shift and M together lead back to the controls.");
  }

  /** Chromium on Linux does not tell that a dead key goes up, nor what was held with it: it would stay down, and repeat. */
  #catchUp(event) {
    this.#dead = event.key === "Dead" ? event.code : "";
    const down = (code) => (code === "AltRight" ? event.altKey || event.getModifierState("AltGraph") : event.getModifierState(MODIFIERS[code]));
    for (const code of Object.keys(this._keyboard._keyDownList)) {
      if ((code in MODIFIERS || code === "AltRight") && code !== event.code && !down(code)) this.#release(code);
    }
  }

  _handleKeyEvent(keysym, code, down, ...locks) {
    super._handleKeyEvent(keysym, code, down, ...locks);
    if (down && code === this.#dead) this.#release(code);
  }

  #release(code) { this._keyboard._sendKeyEvent(this._keyboard._keyDownList[code], code, false); }

  get canvas() { return this._canvas; }

  get ratio() { return this.sharp ? window.devicePixelRatio : 1; }

  /** Milliseconds for a message to the desktop and its answer, which waits its turn behind the pictures as those do. */
  roundTrip() {
    if (!this._supportsFence || this._rfbConnectionState !== "connected") return Promise.resolve(null);
    if (this.#answered) return Promise.resolve(performance.now() - this.#asked);
    return new Promise((resolve) => {
      this.#asked = performance.now();
      this.#answered = resolve;
      RFB.messages.clientFence(this._sock, FENCE_IS_REQUEST, "hutch");
    });
  }

  _handleServerFenceMsg() {
    if (this._sock.rQwait("fence", FENCE_HEADER_BYTES, 1)) return false;
    const header = this._sock.rQpeekBytes(FENCE_HEADER_BYTES);
    // noVNC itself asks nothing, and takes an answer for an error
    if (header[3] & 0x80) return super._handleServerFenceMsg();
    const length = FENCE_HEADER_BYTES + header[7];
    if (this._sock.rQwait("fence", length, 1)) return false;
    this._sock.rQskipBytes(length);
    this.#answered?.(performance.now() - this.#asked);
    this.#answered = null;
    return true;
  }

  _framebufferUpdate() {
    const whole = super._framebufferUpdate();
    if (whole) this.onframe?.();
    return whole;
  }

  /** In pixels of the desktop. */
  _screenSize() {
    const { w, h } = super._screenSize();
    return { w: Math.round(w * this.ratio), h: Math.round(h * this.ratio) };
  }

  _updateScale() {
    if (this._scaleViewport) {
      const { w, h } = super._screenSize();
      this._display.autoscale(w, h);
    } else {
      this._display.scale = 1 / this.ratio;
    }
    this._fixScrollbars();
  }
}
