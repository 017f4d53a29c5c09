// The page: what the newest picture is, how certain that is, how old it is, and what is wrong with it.

import { Connection } from "/connection.js";
import { Picture } from "/picture.js";

const STALE_MS = 1500; // without a new picture, where the source may not be silent; or
const STALE_PICTURES = 3; // that should have come meanwhile, where they come slowly
const FIGURES_MS = 250; // between two changes of figures that nobody could read faster
const SETTLED_MS = 1500; // that a label has to last before it is spoken
const SPOKEN_MS = 4000; // between two labels that are spoken
const TOAST_MS = 4000;
const MAP_STRENGTH = 0.45; // how much of a certain tile's colour lies over the picture
const NOTICES = 4;
const THEMES = ["system", "dark", "light"];
const STEPS = { grab: "read", prepare: "resize", network: "network", quality: "judge", waiting: "wait" };

const byId = (id) => document.getElementById(id);
const percent = (part) => {
  const text = (100 * part).toFixed(1);
  const least = part > 0 && text === "0.0" ? "<0.1" : text;
  return `${part < 1 && text === "100.0" ? ">99.9" : least}\u00a0%`; // none or all only where it is
};
const kept = {
  get: (name, otherwise) => {
    try {
      return localStorage.getItem(`mmdeploy-live-${name}`) ?? otherwise;
    } catch {
      return otherwise; // a browser that keeps nothing
    }
  },
  set: (name, value) => {
    try {
      localStorage.setItem(`mmdeploy-live-${name}`, value);
    } catch {
      // likewise
    }
  },
};

const state = {
  hello: null,
  isFrozen: false,
  hasMap: false,
  isMapOn: kept.get("map", "on") === "on",
  mapClass: null, // null: the likeliest of each tile
  threshold: Number(kept.get("threshold", 0)) / 100,
  ended: null,
  lastFigures: 0,
};
const bars = [];

// The answer.

function setUp(hello) {
  const before = state.hello;
  if (before && before.msmamba !== hello.msmamba) {
    location.reload(); // the server is another one, and so may be its page
    return;
  }
  state.hello = hello;
  state.ended = null;
  byId("model").textContent = hello.artefact;
  byId("sha256").textContent = `${hello.artefact_sha256.slice(0, 16)}…`;
  byId("sha256").title = hello.artefact_sha256;
  byId("runs-by").textContent = hello.runs_by;
  byId("folder").textContent = hello.folder;
  byId("source").textContent = `${hello.source} · ${hello.artefact}`;
  document.title = `${hello.source} · mmdeploy live`;
  byId("notices").replaceChildren();
  const isAnother = before?.session !== hello.session;
  if (isAnother) makeBars(hello, before && String(before.labels) === String(hello.labels));
  if (before && isAnother) forgetAll();
  else connection.say({ pause: isPaused() });
}

// What was shown, frozen or not, is of a session that is over, and may be of another model.
function forgetAll() {
  picture.clear();
  freeze(false);
  byId("picture").setAttribute("aria-label", "No picture yet");
  byId("waiting").hidden = false;
  byId("banner").hidden = true;
  for (const id of ["freeze", "snapshot", "map"]) byId(id).disabled = true;
  for (const id of ["view", "answer"]) byId(id).classList.remove("stale");
  for (const id of ["label", "age", "rate", "dropped"]) byId(id).textContent = "—";
  for (const id of ["probability", "nearest"]) byId(id).textContent = "";
  byId("answer").dataset.state = byId("lamp").dataset.state = "none";
  byId("lamp-words").textContent = "no picture yet";
}

function makeBars(hello, areTheSame) {
  bars.length = 0;
  if (!areTheSame) state.mapClass = null;
  byId("bars").replaceChildren(
    ...hello.labels.map((label, index) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.disabled = true;
      button.title = label;
      button.addEventListener("click", () => chooseClass(index));
      const [name, share, track, fill, mark] = ["name", "percent", "track", "fill", "mark"].map((kind) => {
        const span = document.createElement("span");
        span.className = kind;
        return span;
      });
      name.textContent = label;
      share.textContent = "—";
      fill.style.background = colourOf(index);
      track.append(fill, mark);
      button.append(name, track, share);
      item.append(button);
      bars.push({ item, button, share, fill, mark });
      return item;
    }),
  );
  showThreshold();
}

function colourOf(index) {
  return `rgb(${state.hello.colours[index].join(" ")})`;
}

function showAnswer(head) {
  const { result } = head;
  byId("waiting").hidden = true;
  for (const id of ["freeze", "snapshot"]) byId(id).disabled = false;
  const isSure = result.decided !== false && result.probability >= state.threshold; // without a guard all are
  byId("answer").dataset.state = isSure ? "sure" : "unsure";
  byId("label").textContent = isSure ? result.label : "not sure";
  byId("probability").textContent = isSure ? percent(result.probability) : "";
  byId("nearest").textContent = isSure ? meanOf(result) : nearest(result);
  byId("picture").setAttribute("aria-label", `Picture number ${result.number}`);
  result.probabilities.forEach((probability, index) => {
    const { item, share, fill } = bars[index];
    share.textContent = percent(probability);
    fill.style.transform = `scaleX(${probability})`;
    item.classList.toggle("first", state.hello.labels[index] === result.label);
  });
  showLamp([...result.quality.faults, ...(result.reasons ?? [])]);
  showMapState(result);
  if (performance.now() - state.lastFigures > FIGURES_MS || state.isFrozen) showFigures(head);
  speak(byId("label").textContent);
}

// With a grid the answer is a mean over tiles: those that the guard decides, where there is one.
function meanOf({ tiles }) {
  return tiles ? `mean of ${tiles.mean_of} ${tiles.mean_of === 1 ? "tile" : "tiles"}` : "";
}

// What it may be, where nothing is said for sure: the guard's candidates, or the likeliest class.
function nearest({ label, probability, candidates }) {
  if (candidates?.length > 1) return `may be: ${candidates.join(", ")}`;
  return `nearest: ${label}, ${percent(probability)}`;
}

// What is wrong with the picture, and why the guard says nothing, in words; a reason may be a fault, too.
function showLamp(faults) {
  byId("lamp").dataset.state = faults.length ? "fault" : "good";
  byId("lamp-words").textContent = faults.length ? [...new Set(faults)].join(", ") : "in focus, well lit";
}

// Figures.

function showFigures({ result, frames_a_second: shown, taken_a_second: taken, dropped_in_all: dropped }) {
  state.lastFigures = performance.now();
  byId("rate").replaceChildren(
    shown === null ? "—" : `${shown.toFixed(shown < 10 ? 1 : 0)}/s`,
    small(taken === null ? "" : `of ${taken.toFixed(taken < 10 ? 1 : 0)}/s taken`),
  );
  byId("dropped").replaceChildren(dropped.toLocaleString("en"), small("in all"));
  const latency = result.latency_ms;
  const steps = { grab: latency.grab, prepare: latency.prepare, network: latency.network, quality: latency.quality };
  const known = Object.values(steps).reduce((sum, value) => sum + value, 0);
  steps.waiting = Math.max(latency.total - known, 0);
  const total = known + steps.waiting;
  const bar = byId("steps-bar");
  const list = byId("steps");
  if (!list.children.length) {
    Object.entries(STEPS).forEach(([step, words], index) => {
      const row = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.className = `s${index}`;
      const name = document.createElement("dt");
      name.textContent = words;
      const value = document.createElement("dd");
      value.dataset.step = step;
      row.append(swatch, name, value);
      list.append(row);
      const part = document.createElement("span");
      part.className = `s${index}`;
      bar.append(part);
    });
    const [row, name, value] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    row.className = "all";
    name.textContent = "from picture to answer";
    value.dataset.step = "total";
    row.append(name, value);
    list.append(row);
  }
  Object.keys(STEPS).forEach((step, index) => {
    bar.children[index].style.width = `${(100 * steps[step]) / total}%`;
  });
  for (const value of list.querySelectorAll("dd")) {
    const ms = value.dataset.step === "total" ? latency.total : steps[value.dataset.step];
    value.textContent = `${ms.toFixed(ms < 99.95 ? 1 : 0)} ms`;
  }
}

function small(text) {
  const element = document.createElement("small");
  element.textContent = text;
  return element;
}

function howOld(ms) {
  if (ms === null) return "—";
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// The age goes on while no picture comes: an old one must not look new.
function showAge() {
  const head = picture.shown?.head;
  if (!head) return;
  const age = connection.age(head.taken_ms);
  const due = (1000 * STALE_PICTURES) / (head.frames_a_second ?? Infinity);
  const isOld = age !== null && age > Math.max(STALE_MS, due) + head.painted_age && !state.isFrozen;
  const isStale = isOld && (!state.hello.may_be_silent || connectionState !== "live");
  if (!isOld && !state.isFrozen) byId("age").textContent = howOld(head.painted_age ?? age);
  else byId("age").textContent = howOld(age);
  for (const id of ["view", "answer"]) byId(id).classList.toggle("stale", isStale && !state.ended);
  const banner = byId("banner");
  if (state.isFrozen) say(banner, "frozen", `Frozen, taken ${howOld(age)} ago`);
  else if (state.ended) say(banner, "ended", state.ended);
  else if (isStale) say(banner, "stale", `No new picture for ${howOld(age)}`);
  else banner.hidden = true;
}

function say(element, name, words) {
  element.hidden = false;
  element.dataset.state = name;
  element.textContent = words;
}

// Speech: a label that lasts, and what somebody did; not every picture.

const speech = { label: "", since: 0, spoken: "", at: 0 };

function speak(label) {
  const now = performance.now();
  if (label !== speech.label) Object.assign(speech, { label, since: now });
  if (label === speech.spoken || now - speech.since < SETTLED_MS || now - speech.at < SPOKEN_MS) return;
  Object.assign(speech, { spoken: label, at: now });
  byId("spoken").textContent = label;
}

let toastTimer = 0;

function toast(words) {
  const element = byId("toast");
  element.textContent = words;
  element.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => element.classList.remove("shown"), TOAST_MS);
}

// What one can do.

function isPaused() {
  return state.isFrozen || document.hidden;
}

function freeze(on) {
  if (on && !picture.shown) return;
  state.isFrozen = on;
  if (on) {
    picture.forget();
    showFigures(picture.shown.head);
  }
  byId("freeze").setAttribute("aria-pressed", on);
  byId("freeze-words").textContent = on ? "Go on" : "Freeze";
  connection.say({ pause: isPaused() });
  showAge();
}

function snapshot() {
  if (!picture.shown || byId("snapshot").disabled) return;
  connection.say({ snapshot: picture.shown.head.result.number });
  const view = byId("view");
  view.classList.remove("flash");
  void view.offsetWidth; // so that the animation begins again
  view.classList.add("flash");
}

function showMapState(result) {
  state.hasMap = Boolean(result.map);
  byId("map").disabled = !state.hasMap;
  byId("map").title = state.hasMap ? "" : "There is a map where mmdeploy live is given --grid or --tiles";
  byId("map").setAttribute("aria-pressed", state.hasMap && state.isMapOn);
  bars.forEach(({ button }, index) => {
    button.disabled = !(state.hasMap && state.isMapOn);
    button.setAttribute("aria-pressed", state.hasMap && state.isMapOn && state.mapClass === index);
  });
}

function redraw() {
  if (!picture.shown) return;
  picture.draw();
  showAnswer(picture.shown.head);
}

function toggleMap() {
  if (!state.hasMap) return;
  state.isMapOn = !state.isMapOn;
  kept.set("map", state.isMapOn ? "on" : "off");
  redraw();
}

function chooseClass(index) {
  state.mapClass = state.mapClass === index ? null : index;
  redraw();
}

// Each tile in the colour of its likeliest class, or all in that of one, the stronger the likelier. Tiles lie
// from the upper left corner on, and reach over the right and lower border. What the guard withholds is left out.
function drawMap(context, { result, width }) {
  if (!result.map || !state.isMapOn) return;
  const side = (result.tiles.side * context.canvas.width) / width;
  const line = Math.max(side / 60, 0.5);
  context.lineWidth = line;
  const undecided = new Set((result.undecided ?? []).map(String)); // without a guard there are none
  result.map.forEach((row, y) =>
    row.forEach((tile, x) => {
      if (!tile) return; // nothing is known of it
      const index = state.mapClass ?? tile.indexOf(Math.max(...tile));
      if (state.mapClass === null && (tile[index] < state.threshold || undecided.has(`${y},${x}`))) return;
      context.fillStyle = context.strokeStyle = colourOf(index);
      context.globalAlpha = MAP_STRENGTH * tile[index];
      context.fillRect(x * side, y * side, side, side);
      context.globalAlpha = tile[index];
      context.strokeRect(x * side + line, y * side + line, side - 2 * line, side - 2 * line);
    }),
  );
  context.globalAlpha = 1;
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch(() => toast("The browser allows no full screen"));
}

// A tablet beside the eyepiece must not go dark; browsers allow this on the machine itself, and release it when
// the page is hidden.
function stayAwake() {
  if (!document.hidden) navigator.wakeLock?.request("screen").catch(() => {}); // as a low battery may refuse
}

function showThreshold() {
  const value = Math.round(100 * state.threshold);
  byId("threshold").value = value;
  byId("threshold-words").textContent = `${value} %`;
  for (const { mark } of bars) {
    mark.hidden = value === 0;
    mark.style.left = `${value}%`;
  }
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme-name").textContent = name;
  kept.set("theme", name);
}

// All of it together.

let connectionState = "wait";

const picture = new Picture(byId("picture"), byId("scale"), {
  drawn: (head) => {
    // As old as it is now; the next look at the clock would make every picture older than it was.
    head.painted_age = connection.age(head.taken_ms);
    showAnswer(head);
  },
  painted: (number) => connection.say({ painted: number }),
});
picture.overlay = drawMap;

const connection = new Connection({
  picture: (head, blob) => {
    if (!isPaused()) picture.take(head, blob);
  },
  said: (message) => {
    if (message.hello) setUp(message.hello);
    if (message.notice) notice(message);
    if (message.end) state.ended = message.end;
    if (message.snapshot) {
      const { name, error } = message.snapshot;
      toast(error ? `No snapshot: ${error}` : `Kept: ${state.hello.folder}/${name}`);
    }
  },
  state: (name, words) => {
    connectionState = name;
    say(byId("connection"), name, name === "gone" && state.ended ? "ended" : words);
  },
});

function notice({ notice: text, at }) {
  const item = document.createElement("li");
  item.textContent = `${new Date(at).toLocaleTimeString()} ${text}`;
  byId("notices").prepend(item);
  while (byId("notices").children.length > NOTICES) byId("notices").lastChild.remove();
}

const keys = { " ": () => freeze(!state.isFrozen), s: snapshot, h: toggleMap, f: fullScreen };
const buttons = { freeze: keys[" "], snapshot, map: toggleMap, full: fullScreen };

for (const [id, action] of Object.entries(buttons)) {
  byId(id).addEventListener("click", (event) => {
    action();
    // After a click by pointer the space bar is to freeze, not to press the button once more.
    if (event.detail > 0) byId(id).blur();
  });
}
document.addEventListener("keydown", (event) => {
  if (!byId("keys").checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const presses = event.target instanceof HTMLButtonElement || event.target.type === "checkbox";
  if (!(key in keys) || (key === " " && presses)) return;
  event.preventDefault();
  keys[key]();
});
byId("threshold").addEventListener("input", (event) => {
  state.threshold = event.target.value / 100;
  kept.set("threshold", event.target.value);
  showThreshold();
  redraw();
});
byId("keys").addEventListener("change", (event) => kept.set("keys", event.target.checked ? "on" : "off"));
byId("keys").checked = kept.get("keys", "on") === "on";
byId("theme").addEventListener("click", () => {
  const at = THEMES.indexOf(document.documentElement.dataset.theme);
  setTheme(THEMES[(at + 1) % THEMES.length]);
});
document.addEventListener("visibilitychange", () => {
  connection.say({ pause: isPaused() });
  stayAwake();
});
document.addEventListener("fullscreenchange", () =>
  byId("full").setAttribute("aria-pressed", Boolean(document.fullscreenElement)),
);
byId("full").hidden = !document.fullscreenEnabled;
setTheme(kept.get("theme", "system"));
setInterval(showAge, FIGURES_MS);
stayAwake();
