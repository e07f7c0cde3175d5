// Who is here, who drives, who asks, and what one may do about it.

const PARTS = {
  owner: "owner", driver: "may drive", viewer: "watches", support: "support", "instrument-scientist": "instrument scientist",
  "instrument-control": "instrument control", "it-support": "IT support", admin: "administrator",
};
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const button = (words, act, kind = "btn-outline-secondary") => element("button", { type: "button", className: `btn btn-sm ${kind}`, textContent: words, onclick: act });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

export class Room {
  #send;
  #state = null;
  // milliseconds by which this browser's clock is behind the room's
  #behind = 0;
  #shown = {};
  #parts = Object.fromEntries(["people", "count", "drive", "driving", "typing", "asks"].map((id) => [id, document.getElementById(id)]));

  /** send: to the room. */
  constructor(send) {
    this.#send = send;
    this.#parts.drive.addEventListener("click", () => this.#drive());
    // counts the seconds that a question waits
    setInterval(() => this.#state?.asking.length && this.#draw(), 1000);
    for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", () => dialog.returnValue === "yes" && dialog.answer?.());
  }

  update(state) {
    this.#state = state;
    this.#behind = Date.parse(state.at) - Date.now();
    this.#draw();
  }

  #secondsUntil(iso) { return Math.max(0, Math.ceil((Date.parse(iso) - Date.now() - this.#behind) / 1000)); }

  #may(what) { return this.#state.may.includes(what); }

  #name(id) { return this.#state.people.find((person) => person.id === id)?.name ?? "somebody"; }

  #draw() {
    const { you, driver, people, locked, asking, support = [] } = this.#state;
    const mine = driver === you;
    const driving = mine ? "You drive" : driver ? `${this.#name(driver)} drives` : "Nobody drives";
    this.#say("driving", locked ? `${driving}. Locked: the owner is away, so all only watch` : mine ? driving : `${driving}, you watch`);
    this.#parts.driving.dataset.state = locked ? "locked" : mine ? "mine" : "watching";
    const typing = people.filter((person) => person.typing && person.id !== you);
    const others = typing.filter((person) => person.id !== driver).map((person) => person.name);
    this.#parts.typing.textContent = others.length ? `${others.join(", ")} ${others.length > 1 ? "type" : "types"}` : typing.length ? "typing" : "";
    this.#parts.count.textContent = people.length;
    this.#drawButton(asking.find(({ id }) => id === you));
    const askers = asking.filter(({ id }) => id !== you);
    const waiting = support.filter((one) => !one.right), inside = support.filter((one) => one.right);
    this.#keep(
      "people",
      [...people.map((person) => this.#person(person)), ...inside.map((one) => this.#isIn(one))],
      [people.map((one) => [one.id, one.name, one.part, one.typing]), inside, driver, this.#state.may],
    );
    this.#keep("asks", [...askers.map((one) => this.#asking(one)), ...waiting.map((one) => this.#wantsIn(one))], [askers, waiting, this.#state.may]);
    for (const { id, until } of askers) {
      const left = document.getElementById(`left-${id}`);
      if (left) left.textContent = `${this.#secondsUntil(until)} s`;
    }
  }

  #drawButton(asked) {
    const { drive } = this.#parts;
    const words = asked ? `Asked, yours in ${this.#secondsUntil(asked.until)} s` : this.#may("take") ? "Take control" : this.#may("ask") ? "Ask for control" : this.#may("release") ? "Let go of control" : "";
    drive.hidden = !words;
    drive.textContent = words;
    drive.setAttribute("aria-disabled", Boolean(asked && !this.#may("take")));
    drive.className = `btn ${words.startsWith("Let") ? "btn-outline-secondary" : "btn-primary"}`;
  }

  #drive() {
    const verb = ["take", "ask", "release"].find((one) => this.#may(one));
    if (verb) this.#send({ do: verb });
  }

  #person(person) {
    const { you, driver } = this.#state;
    const does = person.id === driver ? (person.typing ? "drives, is typing" : "drives") : person.typing ? "is typing" : "";
    const line = element("li", {}, element("span", { className: "who" },
      element("strong", { textContent: person.id === you ? `${person.name} (you)` : person.name, dir: "auto" }),
      element("span", { textContent: [PARTS[person.part] ?? person.part, does].filter(Boolean).join(" · ") })));
    if (person.id === you) return line;
    if (this.#may("give") && person.id !== driver && person.part !== "viewer") line.append(button("Give control", () => this.#send({ do: "give", to: person.id })));
    if (this.#may("remove") && person.part !== "owner") line.append(button("Remove", () => this.#remove(person), "btn-link"));
    return line;
  }

  #asking({ id, name }) {
    const line = element("div", { className: "ask-line" }, element("p", {}, element("strong", { textContent: name, dir: "auto" }), " asks for control."));
    if (!this.#may("give")) return line;
    line.firstChild.append(" Without an answer it passes to them in ", element("span", { id: `left-${id}`, ariaHidden: "true" }), ".");
    line.append(button("Give control", () => this.#send({ do: "give", to: id }), "btn-primary"), button("Keep it", () => this.#send({ do: "refuse", to: id })));
    return line;
  }

  #wantsIn(one) {
    return element("div", { className: "ask-line" },
      element("p", {}, element("strong", { textContent: one.name, dir: "auto" }), " of support asks to come in: ", element("q", { textContent: one.reason, dir: "auto" })),
      button("Answer…", () => this.#answer(one), "btn-primary"));
  }

  #isIn(one) {
    const until = one.until ? ` until ${clock.format(new Date(one.until))}` : "";
    return element("li", {},
      element("span", { className: "who" },
        element("strong", { textContent: `You let ${one.name} ${one.right === "control" ? "drive" : "watch"}${until}`, dir: "auto" }),
        element("span", {}, element("q", { textContent: one.reason, dir: "auto" }))),
      button("End it", () => this.#send({ do: "end-support", request: one.request })));
  }

  #answer({ request, name, reason }) {
    const dialog = document.getElementById("grant"), form = dialog.querySelector("form");
    document.getElementById("grant-who").textContent = name;
    document.getElementById("grant-why").textContent = reason;
    document.getElementById("grant-refuse").onclick = () => { this.#send({ do: "refuse-support", request }); dialog.close("no"); };
    dialog.answer = () => this.#send({ do: "grant", request, right: form.elements.right.value, minutes: Number(form.elements.minutes.value) });
    dialog.showModal();
  }

  #remove({ id, name }) {
    const dialog = document.getElementById("remove");
    document.querySelectorAll(".remove-who").forEach((place) => { place.textContent = name; });
    dialog.answer = () => this.#send({ do: "remove", who: id });
    dialog.showModal();
  }

  /** Anew only when something is different: else buttons would change under the finger, and be read out again. */
  #keep(name, made, key) {
    const text = JSON.stringify(key);
    if (this.#shown[name] === text) return;
    this.#shown[name] = text;
    const place = this.#parts[name], at = [...place.querySelectorAll("button")].indexOf(document.activeElement);
    place.replaceChildren(...made);
    if (at >= 0) ([...place.querySelectorAll("button")][at] ?? place).focus();
  }

  #say(name, words) { if (this.#parts[name].textContent !== words) this.#parts[name].textContent = words; }
}
