// Where the desktop is shown: one session after another in the same place, and how each is scaled, compressed and measured.

import { Screen } from "./screen.js";

const MEASURE_MS = 2000;
// noVNC's levels, best first
const QUALITIES = [{ picture: 8, compression: 2 }, { picture: 6, compression: 2 }, { picture: 4, compression: 5 }, { picture: 1, compression: 7 }];
const SLOW_MS = 350;
const QUICK_MS = 120;
const QUICK_IN_A_ROW = 8;
const THUMBNAIL_MS = 60_000;
const THUMBNAIL_WIDTH = 320;

/** Events: "frame" for the first whole picture of a session; "measured" {ms}; "copied" {text}. */
export class Stage extends EventTarget {
  #place;
  #choice;
  #screen = null;
  #still = null;
  #quality = 0;
  #quick = 0;
  #slow = 0;

  /** choice: {scaling, quality, sharp, drag}, as the person chose it; `apply` when it has changed. */
  constructor(place, choice) {
    super();
    this.#place = place;
    this.#choice = choice;
    setInterval(() => this.#measure(), MEASURE_MS);
  }

  get screen() { return this.#screen; }

  begin(pipe, control) {
    const focused = this.#place.contains(document.activeElement);
    this.freeze();
    const screen = new Screen(this.#place, pipe);
    this.#screen = screen;
    screen.viewOnly = !control;
    screen.canvas.tabIndex = control ? 0 : -1;
    screen.showDotCursor = true;
    screen.background = "transparent";
    screen.addEventListener("clipboard", ({ detail }) => this.#tell("copied", { text: detail.text }));
    screen.addEventListener("connect", () => this.apply());
    screen.onframe = () => {
      screen.onframe = null;
      this.#still?.remove();
      this.#still = null;
      if (focused) screen.focus();
      this.#tell("frame");
    };
    this.apply();
  }

  /** Ends the session; its last picture stays until the next one has its first. */
  freeze() {
    const canvas = this.#screen?.canvas;
    if (canvas?.width && !this.#screen.onframe) {
      const box = canvas.getBoundingClientRect(), around = this.#place.getBoundingClientRect();
      this.#still?.remove();
      this.#still = Object.assign(document.createElement("canvas"), { className: "still", width: canvas.width, height: canvas.height });
      Object.assign(this.#still.style, { left: `${box.left - around.left}px`, top: `${box.top - around.top}px`, width: `${box.width}px`, height: `${box.height}px` });
      this.#still.getContext("2d").drawImage(canvas, 0, 0);
      this.#place.append(this.#still);
    }
    this.#screen?.disconnect();
    this.#screen = null;
  }

  apply() {
    const screen = this.#screen, { scaling, quality, sharp, drag } = this.#choice;
    if (!screen) return;
    screen.sharp = sharp;
    screen.clipViewport = scaling === "one" && drag;
    screen.dragViewport = screen.clipViewport;
    screen.scaleViewport = scaling !== "one";
    screen.resizeSession = scaling === "resize" && !screen.viewOnly;
    const level = QUALITIES[quality === "auto" ? this.#quality : Number(quality)];
    screen.qualityLevel = level.picture;
    screen.compressionLevel = level.compression;
  }

  /** A small picture of the desktop, or null when there is none. */
  thumbnail() {
    const canvas = this.#screen?.canvas;
    if (!canvas?.width || this.#screen.onframe) return Promise.resolve(null);
    const small = document.createElement("canvas");
    small.width = THUMBNAIL_WIDTH;
    small.height = Math.max(1, Math.round((canvas.height * THUMBNAIL_WIDTH) / canvas.width));
    small.getContext("2d").drawImage(canvas, 0, 0, small.width, small.height);
    return new Promise((resolve) => small.toBlob(resolve, "image/jpeg", 0.7));
  }

  /** At once, and then once a minute while somebody looks. */
  keepThumbnail(send) {
    const take = async () => {
      const picture = document.hidden ? null : await this.thumbnail();
      if (picture) send(picture);
    };
    this.addEventListener("frame", take, { once: true });
    setInterval(take, THUMBNAIL_MS);
  }

  async #measure() {
    const screen = this.#screen;
    if (!screen || document.hidden) return;
    const ms = await screen.roundTrip();
    if (ms === null || screen !== this.#screen) return;
    this.#tell("measured", { ms });
    this.#quick = ms < QUICK_MS ? this.#quick + 1 : 0;
    this.#slow = ms > SLOW_MS ? this.#slow + 1 : 0;
    const before = this.#quality;
    if (this.#slow >= 2) this.#quality = Math.min(this.#quality + 1, QUALITIES.length - 1);
    else if (this.#quick >= QUICK_IN_A_ROW) this.#quality = Math.max(this.#quality - 1, 0);
    if (this.#quality === before) return;
    this.#slow = this.#quick = 0;
    this.apply();
  }

  #tell(name, detail = {}) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
