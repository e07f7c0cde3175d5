// The page of a desktop: wires the channel, the stage and what stands around them.

import { Channel } from "./channel.js";
import { Clipboard } from "./clipboard.js";
import { keyboardOf, likelyLayout, rememberLayout } from "./keyboard.js";
import { Room } from "./room.js";
import { Stage } from "./stage.js";

const byId = (id) => document.getElementById(id);
const { body } = document, { address, clipboardLimit, thumbnails } = body.dataset;
const SAID_MS = 8000;

const choice = { scaling: window.innerWidth < 700 ? "fit" : "resize", quality: "auto", sharp: false, drag: false, ...JSON.parse(localStorage.getItem("hutch.view") ?? "{}") };
const stage = new Stage(byId("stage"), choice);
const screen = () => stage.screen;
const channel = new Channel(askTicket);
const room = new Room((message) => channel.send(message));
const keys = keyboardOf(screen);
const clipboard = new Clipboard(screen, say, Number(clipboardLimit));
const layout = byId("layout");

async function askTicket() {
  const query = new URLSearchParams({ width: Math.round(byId("stage").clientWidth), height: Math.round(byId("stage").clientHeight), layout: layout.value });
  const early = window.firstTicket;
  delete window.firstTicket;
  const answer = await (early ?? fetch(`${address}/ticket`, { method: "POST" }));
  const told = answer.headers.get("Content-Type")?.startsWith("application/json") ? await answer.json() : {};
  if (answer.ok) return { ticket: told.ticket, url: `${told.url}?${query}` };
  // what the portal cannot do just now it may do soon; what it refuses it will refuse again
  const refused = answer.status >= 400 && answer.status < 500 && answer.status !== 429;
  throw Object.assign(new Error(told.text ?? "You may no longer see this desktop, or you are signed out."), { final: refused });
}

// --- the connection

let seconds = 0;
let counting = 0;
let reason = "";

channel.addEventListener("waiting", ({ detail }) => {
  stage.freeze();
  say("");
  body.dataset.connection = "waiting";
  clearInterval(counting);
  seconds = Math.ceil(detail.seconds);
  const again = detail.attempts > 0;
  const why = detail.slow ? "The line was too slow, or nobody was at the desktop for long." : reason;
  const tell = () => {
    byId("waiting").hidden = false;
    // said once; the seconds are only seen
    const words = again ? `${why} Connecting again`.trim() : "Connecting to the desktop";
    if (byId("waiting-words").textContent !== words) byId("waiting-words").textContent = words;
    byId("waiting-seconds").textContent = again && seconds > 0 ? ` in ${seconds} s` : "";
    byId("again").hidden = !(again && seconds > 0);
    seconds -= 1;
  };
  tell();
  counting = setInterval(tell, 1000);
});
channel.addEventListener("back", () => {
  clearInterval(counting);
  byId("again").hidden = true;
  byId("waiting-seconds").textContent = "";
  byId("waiting-words").textContent = "Waiting for the first picture";
});
channel.addEventListener("rfb", ({ detail }) => {
  keys.letGo();
  stage.begin(detail.pipe, detail.control);
  body.dataset.control = detail.control;
  // whoever drove before may have another keyboard
  sendLayout();
});
stage.addEventListener("frame", () => {
  byId("waiting").hidden = true;
  body.dataset.connection = "open";
  body.dataset.opened = true;
  reason = "";
  if (body.dataset.control === "true" && (!document.activeElement || document.activeElement === body)) screen()?.focus();
});
channel.addEventListener("room", ({ detail }) => room.update(detail));
channel.addEventListener("say", ({ detail }) => {
  // what is said right before the end is the reason for it
  reason = detail.text;
  setTimeout(() => { if (body.dataset.connection === "open") reason = ""; }, 1000);
  if (body.dataset.connection === "open") say(detail.text);
});
channel.addEventListener("starting", ({ detail }) => { byId("waiting-words").textContent = detail.text; });
channel.addEventListener("end", ({ detail }) => {
  stage.freeze();
  clearInterval(counting);
  body.dataset.connection = "ended";
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close("no"));
  byId("waiting").hidden = true;
  byId("end").hidden = false;
  if (!body.dataset.opened) byId("end-title").textContent = "This desktop does not open for you";
  byId("end-words").textContent = detail.text || "The desktop was closed.";
  byId("end-title").focus();
});
byId("again").addEventListener("click", () => channel.connect());

let silence = 0;
function say(words) {
  byId("said").textContent = words;
  clearTimeout(silence);
  silence = setTimeout(() => { byId("said").textContent = ""; }, SAID_MS);
}

stage.addEventListener("measured", ({ detail: { ms } }) => {
  const words = ms < 80 ? "quick" : ms < 200 ? "fair" : ms < 500 ? "slow" : "very slow";
  byId("meter").dataset.bars = { quick: 4, fair: 3, slow: 2, "very slow": 1 }[words];
  byId("meter").title = "The time for a message to the desktop and back, measured every 2 seconds";
  byId("meter-words").textContent = `${Math.round(ms)} ms`;
  byId("meter-means").textContent = `Connection: ${words}, `;
});

// --- keyboard

function sendLayout() { if (body.dataset.control === "true") channel.send({ do: "layout", layout: layout.value }); }

layout.addEventListener("change", () => {
  rememberLayout(layout.value);
  showKeyboard?.(layout.value);
  sendLayout();
});
for (const button of document.querySelectorAll("[data-combine]")) button.addEventListener("click", () => keys.combine(button.dataset.combine.split(" ")));
for (const button of document.querySelectorAll("[data-hold]")) button.addEventListener("click", () => keys.hold(button.dataset.hold));

let showKeyboard = null;
byId("screen-keyboard").addEventListener("click", async ({ currentTarget }) => {
  const { screenKeyboard } = await import("./screen_keyboard.js");
  showKeyboard ??= screenKeyboard(keys);
  showKeyboard(layout.value);
  const place = byId("keyboard-place");
  place.hidden = !place.hidden;
  currentTarget.setAttribute("aria-pressed", !place.hidden);
});

// before noVNC, which takes every key and lets none pass
window.addEventListener("keydown", (event) => {
  if (event.code === "KeyM" && event.ctrlKey && event.altKey && event.shiftKey) {
    event.preventDefault();
    event.stopImmediatePropagation();
    toggleBar(true);
    byId("home").focus();
  }
}, true);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  if (body.dataset.control === "true") screen()?.focus();
  else byId("stage").focus();
});

// --- what it looks like

function toggleBar(shown) {
  byId("bar").hidden = !shown;
  byId("handle").hidden = shown;
}
byId("collapse").addEventListener("click", () => { toggleBar(false); byId("handle").focus(); });
byId("handle").addEventListener("click", () => { toggleBar(true); byId("collapse").focus(); });

for (const panel of document.querySelectorAll("[popover]")) panel.addEventListener("beforetoggle", () => { panel.style.top = `${byId("stage").offsetTop + 4}px`; });

for (const field of byId("view").querySelectorAll("[name]")) {
  if (field.type === "checkbox") field.checked = choice[field.name];
  else if (field.type === "radio") field.checked = choice[field.name] === field.value;
  else field.value = choice[field.name];
  field.addEventListener("change", () => {
    choice[field.name] = field.type === "checkbox" ? field.checked : field.value;
    localStorage.setItem("hutch.view", JSON.stringify(choice));
    stage.apply();
  });
}

byId("full").hidden = !document.fullscreenEnabled;
byId("full").addEventListener("click", async () => {
  if (document.fullscreenElement) return document.exitFullscreen();
  await document.documentElement.requestFullscreen();
  // Alt+Tab and the like go to the desktop too, where the browser can; Esc leaves when it is held
  await navigator.keyboard?.lock?.();
});
document.addEventListener("fullscreenchange", () => {
  const full = Boolean(document.fullscreenElement);
  if (!full) navigator.keyboard?.unlock?.();
  byId("full").setAttribute("aria-pressed", full);
  toggleBar(!full);
});

stage.addEventListener("copied", ({ detail }) => clipboard.copied(detail.text));
byId("stage").addEventListener("focusin", () => clipboard.look());
if (thumbnails) stage.keepThumbnail((picture) => fetch(thumbnails, { method: "POST", headers: { "Content-Type": "image/jpeg" }, body: picture }).catch(() => {}));

layout.value = await likelyLayout([...layout.options]);
await channel.connect();
