// What htmx does not do: times in the reader's zone, no second submit, focus after a change, on to JupyterLab.
"use strict";

const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const shown = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

function settle(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.title = exact.format(at);
    if ("exact" in time.dataset) time.textContent = shown.format(at);
  }
  root.querySelector("[data-focus]")?.focus();
  const next = root.querySelector("[data-go-on]");
  // replace, so that the way back does not lead here and forward again
  if (next) window.location.replace(next.dataset.goOn);
}

settle(document);

let focused = false;
document.addEventListener("htmx:beforeSwap", (event) => { focused = event.detail.target.contains(document.activeElement); });
document.addEventListener("htmx:sseBeforeMessage", (event) => { focused = event.target.contains(document.activeElement); });
document.addEventListener("htmx:afterSettle", () => {
  settle(document);
  if (focused && document.activeElement === document.body) document.querySelector("h1")?.focus();
  focused = false;
});

// a name that was typed while the page asked for another suggestion stays
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const name = document.getElementById("name");
  if (event.detail.target.id === "name-field" && name.value !== name.form.elements.suggested.value) event.detail.shouldSwap = false;
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!("once" in form.dataset) || event.submitter?.formMethod === "get") return;
  if ("sent" in form.dataset) event.preventDefault();
  form.dataset.sent = "";
});
// a page that comes back from the browser's memory may be sent again
window.addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent));

const offline = document.getElementById("offline");
for (const name of ["htmx:sendError", "htmx:sseError"]) document.addEventListener(name, () => { offline.hidden = false; });
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status >= 500) offline.hidden = false;
  // what the page shows is gone, or no longer ours: the whole page says so
  else window.location.reload();
});
for (const name of ["htmx:afterOnLoad", "htmx:sseOpen"]) document.addEventListener(name, (event) => { if (!event.detail.failed) offline.hidden = true; });

// an invitation's code is in the fragment of its link, which no server hears; it survives the sign-in in this tab only
if (document.getElementById("invitation")) {
  const code = document.getElementById("code");
  if (window.location.hash.length > 1) {
    sessionStorage.setItem("invitation", window.location.hash.slice(1));
    history.replaceState(null, "", window.location.pathname);
  }
  if (code) {
    code.value ||= sessionStorage.getItem("invitation") ?? "";
    code.form.addEventListener("submit", () => sessionStorage.removeItem("invitation"));
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    await navigator.clipboard.writeText(field.value);
    button.textContent = "Copied";
  });
}
