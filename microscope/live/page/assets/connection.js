// The line to the server: pictures with their answers come in, and what happened to them goes out.
//
// A picture is acknowledged as it comes, and the next one is sent then; a page that stops reading is sent
// nothing more. When the line is cut it is opened again, for as long as the page is open.

const FIRST_PAUSE = 300;
const LONGEST_PAUSE = 3000;
const CLOCK_EVERY = 5000;

export class Connection {
  // `hears` has picture(head, blob), said(message) and state(name, words), of live, gone and refused.
  constructor(hears) {
    this.hears = hears;
    this.pause = FIRST_PAUSE;
    this.offset = null; // server's clock minus ours, milliseconds
    this.trip = Infinity;
    setInterval(() => this.askTheTime(), CLOCK_EVERY);
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/stream`);
    this.socket.binaryType = "arraybuffer";
    this.wasOpen = false;
    this.socket.onopen = () => {
      this.wasOpen = true;
      this.pause = FIRST_PAUSE;
      this.trip = Infinity;
      this.hears.state("live", "live");
      this.askTheTime();
    };
    this.socket.onmessage = (event) => this.take(event.data);
    this.socket.onclose = () => this.again();
  }

  async again() {
    this.hears.state("gone", "no connection");
    try {
      const { ok, status } = await fetch("/", { cache: "no-store" });
      if (status === 401) {
        this.hears.state("refused", "open the address that mmdeploy printed");
        return;
      }
      if (ok && !this.wasOpen) this.hears.state("refused", "too many browsers look: waiting");
    } catch {
      // mmdeploy is not running, or not yet again.
    }
    setTimeout(() => this.open(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
  }

  take(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if ("clock" in message) this.setClock(message);
      else this.hears.said(message);
      return;
    }
    const length = new DataView(data).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.say({ got: head.result.number });
    this.hears.picture(head, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  }

  say(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  askTheTime() {
    this.say({ clock: performance.now() });
  }

  // The quickest answer tells the time best; trips that were as quick are taken again, since clocks drift.
  setClock({ clock, server_ms: server }) {
    const now = performance.now();
    if (now - clock <= this.trip + 1) {
      this.trip = Math.min(this.trip, now - clock);
      this.offset = server - (clock + now) / 2;
    }
  }

  // How old something is that was taken at a moment of the server's clock, in milliseconds.
  age(takenMs) {
    return this.offset === null ? null : Math.max(performance.now() + this.offset - takenMs, 0);
  }
}
