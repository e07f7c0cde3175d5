// One WebSocket carries the room (text, JSON) and the desktop (binary, RFB). It comes back by itself when it breaks.

const FIRST_PAUSE_SECONDS = 0.5;
const LONGEST_PAUSE_SECONDS = 5;
const TOO_SLOW = 4408;
// with these the desktop is over for this person; coming back would change nothing
const FINAL = new Set([4400, 4403]);

/** What noVNC takes for a WebSocket: the binary half of the channel, for the length of one RFB session. */
class Pipe {
  binaryType = "arraybuffer";
  protocol = "";
  readyState = "open";
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;
  #socket;

  constructor(socket) { this.#socket = socket; }

  send(bytes) {
    if (this.readyState === "open" && this.#socket.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  receive(data) { this.onmessage?.({ data }); }

  close() {
    if (this.readyState === "closed") return;
    this.readyState = "closed";
    // not at once: noVNC expects it after its own closing
    queueMicrotask(() => this.onclose?.({}));
  }
}

/**
 * Events: "rfb" {pipe, control}, and by its name what else the server says ("room", "say", "end");
 * "waiting" {seconds} while it is not connected; "back" when it is.
 */
export class Channel extends EventTarget {
  #askTicket;
  #socket = null;
  #pipe = null;
  #attempts = 0;
  #timer = 0;
  #over = false;

  /** askTicket: a function that gets {ticket, url}, or throws an error with `final` when there is none to be had. */
  constructor(askTicket) {
    super();
    this.#askTicket = askTicket;
    window.addEventListener("online", () => this.#timer && this.connect());
  }

  async connect() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#tell("waiting", { seconds: 0, attempts: this.#attempts });
    try {
      const { ticket, url } = await this.#askTicket();
      if (!this.#over) this.#open(url, ticket);
    } catch (error) {
      if (error.final) this.#end(error.message);
      else this.#later();
    }
  }

  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #open(url, ticket) {
    const socket = new WebSocket(url, ["hutch.rfb", `hutch.ticket.${ticket}`]);
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.#hear(JSON.parse(data)) : this.#pipe?.receive(data));
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  #hear(message) {
    if (message.do === "end") return this.#end(message.text);
    if (message.do !== "rfb") return this.#tell(message.do, message);
    this.#pipe = new Pipe(this.#socket);
    this.#attempts = 0;
    this.#tell("back");
    this.#tell("rfb", { pipe: this.#pipe, control: message.control });
    this.send({ do: "rfb", session: message.session });
  }

  #closed(code, reason) {
    const pipe = this.#pipe;
    this.#pipe = null;
    if (!this.#over) {
      if (FINAL.has(code)) this.#end(reason);
      else this.#later(code);
    }
    pipe?.close();
  }

  #later(code) {
    // from half to the whole of it, so that not everybody comes at once; the first time nobody should have to wait
    const longest = Math.min(FIRST_PAUSE_SECONDS * 2 ** this.#attempts, LONGEST_PAUSE_SECONDS);
    const seconds = longest * (0.5 + Math.random() / 2);
    this.#attempts += 1;
    this.#timer = setTimeout(() => this.connect(), seconds * 1000);
    this.#tell("waiting", { seconds, attempts: this.#attempts, slow: code === TOO_SLOW });
  }

  #end(text) {
    this.#over = true;
    this.#tell("end", { text });
    this.#socket?.close();
  }

  #tell(name, detail = {}) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
