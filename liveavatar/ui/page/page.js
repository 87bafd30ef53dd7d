// The page: what a person does becomes messages on a WebSocket (see /protocol), and what comes back is shown.
import { format, makePlayer } from "/player.js";
import { Microphone } from "/microphone.js";

const $ = (id) => document.getElementById(id);
const state = { portrait: "example:toon", recording: "", house: null, stream: null };
let audio = null; // one AudioContext, made by the first press of a button

// ---- words for people ------------------------------------------------------------------------------------------
function problem(words, note = false) {
  $("problem-words").textContent = words;
  $("problem").classList.toggle("note", note);
  $("problem").setAttribute("role", note ? "status" : "alert");
  $("problem").hidden = !words;
}
function caption(words, waiting = false) {
  $("caption").textContent = words;
  $("screen").dataset.state = waiting ? "waiting" : state.stream?.shown ? "live" : "idle";
}
const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} MB`);

// ---- a stream --------------------------------------------------------------------------------------------------
class Stream {
  constructor() {
    this.shown = false;
    this.player = makePlayer($("video"), $("canvas"), audio);
    this.player.muted = muted();
    this.ready = new Promise((resolve, reject) => ((this.isReady = resolve), (this.isNot = reject)));
    this.ready.catch(() => {});
    this.ended = new Promise((resolve) => (this.isEnded = resolve));
    this.expected = null;
    this.chunks = 0;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/stream`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () =>
      this.send("start", {
        portrait: state.portrait, prompt: $("prompt").value, seed: Number($("seed").value) || 0, format,
        rate: audio.sampleRate,
      });
    this.socket.onmessage = ({ data }) => (typeof data === "string" ? this.hear(JSON.parse(data)) : this.show(data));
    this.socket.onclose = () => this.end();
  }
  send(type, values = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...values }));
  }
  sound(pcm) {
    if (this.socket.readyState === WebSocket.OPEN && this.socket.bufferedAmount < 1e6) this.socket.send(pcm);
  }
  hear(told) {
    const say = {
      queued: () => engineBusy(told.busy) || caption(told.place === 1 ? "All places are taken. You are next." : `All places are taken. You are number ${told.place} in the line.`, true),
      preparing: () => caption("Looking at the portrait …", true),
      ready: () => { caption("Waiting for the first picture …", true); this.isReady(); update(); },
      started: () => { $("m-first").textContent = `first after ${told.first_chunk_s.toFixed(1)} s`; this.player.begin(told); },
      chunk: () => { this.expected = told; meters(told, this.player); },
      interrupted: () => { this.player.interrupt(); caption("Interrupted."); fade(); },
      notice: () => problem(told.message, true),
      error: () => { problem(told.message); this.failed = told.code; },
      finished: () => this.player.finish(),
    }[told.type];
    if (say) say();
  }
  show(data) {
    const told = this.expected;
    this.expected = null;
    this.chunks += 1;
    this.player.add(told, data);
    if (!this.shown) {
      this.shown = true;
      const element = this.player.element;
      element.hidden = false;
      caption("");
      update();
    }
    $("download").disabled = !this.player.canSave;
  }
  stop() {
    this.leaving = true;
    this.send("stop");
    if (this.socket.readyState === WebSocket.CONNECTING) this.socket.close();
    return this.ended;
  }
  end() {
    this.isNot(new Error("ended"));
    if (state.stream === this) {
      microphone.stop();
      state.stream = null;
      this.player.finish();
      finished = this;
      if (!this.shown) caption("");
      else if (!this.failed && !this.leaving && $("problem").hidden)
        problem("The connection to the server was lost. What was made is kept: download it, or start again.");
      if (!this.failed && this.shown) { caption("Ended. Download it, or start again."); fade(); }
      refresh();
    }
    this.isEnded();
    update();
  }
}
let finished = null; // the last stream, for its download

function fade() {
  const words = $("caption").textContent;
  setTimeout(() => { if ($("caption").textContent === words) caption(""); }, 2500);
}

// A stream that is under way, or a new one; null where there can be none.
async function streaming() {
  problem("");
  if (!audio) audio = new AudioContext();
  audio.resume();
  if (!state.stream) {
    finished?.player.close();
    finished = null;
    for (const id of ["video", "canvas"]) $(id).hidden = true;
    caption("Connecting …", true);
    state.stream = new Stream();
    update();
  }
  const stream = state.stream;
  try {
    await stream.ready;
    return stream;
  } catch {
    if (!stream.failed && !stream.leaving) problem("The server does not answer. Is it still running?");
    return null;
  }
}

// ---- meters ----------------------------------------------------------------------------------------------------
const mean = { seconds: 0, made: 0 };
function meters(told, player) {
  const { memory, busy, stats, timings } = told;
  if (memory) {
    $("m-memory").textContent = bytes(memory.used);
    $("m-memory-bar").value = memory.device ? memory.used / memory.device : 0;
    $("m-plan").textContent = `plan ${bytes(memory.plan)}`;
  }
  if (!told.tail) {
    mean.seconds = mean.seconds * 0.8 + told.seconds;
    mean.made = mean.made * 0.8 + timings.denoise + timings.decode;
    $("m-speed").textContent = mean.made > 0.001 ? `${Math.min(99, mean.seconds / mean.made).toFixed(1)}×` : "99×";
    $("m-pace").textContent = mean.made > mean.seconds ? "too slow: it pauses" : "of real time";
    $("m-delay").textContent = `${(player.ahead + (stats.onset_s ?? 0)).toFixed(1)} s`;
    $("m-stalls").textContent = String(stats.stalls);
    $("m-stalled").textContent = stats.stalls ? `${stats.stall_s.toFixed(1)} s, ${(100 * stats.stall_share).toFixed(0)} %` : "none";
  }
  if (busy) engineBusy(busy);
}
function engineBusy({ streams, places, waiting }) {
  const about = state.house?.about;
  if (!about) return;
  const line = waiting ? `, ${waiting} waiting` : "";
  $("engine-words").textContent = `${about.model} · ${streams} of ${places} streaming${line}`;
}

// ---- what a person can do --------------------------------------------------------------------------------------
function update() {
  const { stream, house } = state;
  const can = house?.state === "ready";
  $("start").textContent = stream ? "Stop" : "Start";
  $("start").disabled = !can && !stream;
  $("interrupt").disabled = !stream?.shown;
  $("set-prompt").disabled = !stream?.shown;
  $("download").disabled = !(stream ?? finished)?.player.canSave;
  for (const id of ["say", "play", "mic"]) $(id).disabled = !can;
  if (!microphone.on) pressed("mic", false, "Turn the microphone on", "Turn the microphone off");
  $("apply").disabled = !can || !changed();
}
function pressed(id, on, off_words, on_words) {
  $(id).setAttribute("aria-pressed", String(on));
  $(id).textContent = on ? on_words : off_words;
}
const muted = () => $("mute").getAttribute("aria-pressed") === "true" || (microphone.on && !$("hear").checked);
function setMuted() {
  if (state.stream) state.stream.player.muted = muted();
}

$("start").onclick = async () => {
  if (state.stream) return void state.stream.stop();
  await streaming();
};
$("interrupt").onclick = () => state.stream?.send("interrupt");
$("mute").onclick = () => {
  const on = $("mute").getAttribute("aria-pressed") !== "true";
  pressed("mute", on, "Mute", "Muted");
  setMuted();
  if (finished) finished.player.muted = on;
};
$("download").onclick = () => {
  const made = (state.stream ?? finished)?.player.save();
  if (!made) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(made);
  link.download = "avatar.mp4";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
$("say").onclick = async () => {
  const text = $("sentence").value.trim();
  if (!text) return problem("Write a sentence first.");
  (await streaming())?.send("say", { text, voice: $("voice").value });
};
$("play").onclick = async () => {
  const voice = $("recording").value;
  (await streaming())?.send("play", { voice });
};
$("set-prompt").onclick = () => state.stream?.send("set", { prompt: $("prompt").value });
const microphone = new Microphone((pcm, level) => {
  $("level").value = Math.min(1, level * 4);
  state.stream?.sound(pcm);
});
$("mic").onclick = async () => {
  if (microphone.on) {
    microphone.stop();
    $("level").value = 0;
  } else if (await streaming()) {
    try {
      await microphone.start(audio);
      pressed("mic", true, "", "Turn the microphone off");
    } catch (error) {
      microphone.stop();
      problem(error.message);
    }
  }
  setMuted();
  update();
};
$("hear").onchange = setMuted;
$("problem-close").onclick = () => problem("");
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.stream?.shown) $("interrupt").click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target === $("sentence")) $("say").click();
});

// ---- tabs ------------------------------------------------------------------------------------------------------
const tabs = [...document.querySelectorAll("[role=tab]")];
function choose(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
}
tabs.forEach((tab, i) => {
  tab.onclick = () => choose(tab);
  tab.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  };
});

// ---- files -----------------------------------------------------------------------------------------------------
function upload(kind, file, progress) {
  return new Promise((resolve, reject) => {
    const most = state.house?.limits.upload_bytes;
    if (most && file.size > most) return reject(new Error(`“${file.name}” has ${bytes(file.size)}, and at most ${bytes(most)} are taken.`));
    const request = new XMLHttpRequest(); // fetch tells nothing of how far it is
    request.open("POST", `/upload/${kind}`);
    request.upload.onprogress = (event) => { progress.value = event.loaded / (event.total || 1); };
    request.onload = () => {
      let told = {};
      try { told = JSON.parse(request.responseText); } catch { /* no words came */ }
      if (request.status === 200) resolve(told);
      else reject(new Error(told.message || `The server refused the file (${request.status}).`));
    };
    request.onerror = () => reject(new Error("The file did not get through. Is the server still running?"));
    request.send(file);
  });
}
function dropping(kind, taken) {
  const zone = $(`${kind}-drop`), field = $(`${kind}-file`), progress = $(`${kind}-progress`);
  const take = async (file) => {
    if (!file) return;
    problem("");
    progress.hidden = false;
    progress.value = 0;
    try {
      await taken(await upload(kind === "portrait" ? "picture" : "voice", file, progress), file);
    } catch (error) {
      problem(error.message);
    }
    progress.hidden = true;
    field.value = "";
  };
  field.onchange = () => take(field.files[0]);
  zone.onkeydown = (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); field.click(); }
  };
  for (const name of ["dragover", "dragenter"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault()); // a miss opens nothing

function portrait(name, title, source, prompt) {
  const label = document.createElement("label"), radio = document.createElement("input");
  const picture = document.createElement("img"), words = document.createElement("span");
  radio.type = "radio";
  radio.name = "portrait";
  radio.value = name;
  picture.src = source;
  picture.alt = "";
  words.textContent = title;
  label.append(radio, picture, words);
  $("gallery").append(label);
  radio.onchange = () => {
    state.portrait = name;
    $("poster").src = source;
    if (prompt && (!$("prompt").value || $("prompt").dataset.own !== "yes")) $("prompt").value = prompt;
    if (state.stream) {
      state.stream.stop().then(() => { for (const id of ["video", "canvas"]) $(id).hidden = true; caption(""); });
      problem("The portrait changed, so the stream ended. Say something to begin with the new one.", true);
    } else for (const id of ["video", "canvas"]) $(id).hidden = true;
  };
  return radio;
}
dropping("portrait", async (told, file) => {
  const radio = portrait(told.name, "Yours", URL.createObjectURL(file));
  radio.checked = true;
  radio.onchange();
});
dropping("voice", async (told, file) => {
  const option = new Option(`${file.name} (${told.seconds.toFixed(1)} s)`, told.name, true, true);
  $("recording").append(option);
});
$("prompt").oninput = () => { $("prompt").dataset.own = "yes"; };

// ---- settings --------------------------------------------------------------------------------------------------
function changed() {
  const now = state.house?.choice;
  return now && ($("strategy").value !== now.strategy || Number($("steps").value) !== now.steps || Number($("shift").value) !== now.shift);
}
function explain() {
  const { strategies = [], explained = {} } = state.house ?? {};
  const about = strategies.find(({ name }) => name === $("strategy").value)?.about ?? "";
  for (const key of ["prompt", "seed", "steps", "shift"]) $(`about-${key}`).textContent = explained[key] ?? "";
  $("about-strategy").textContent = `${about} ${explained.strategy ?? ""}`;
  $("steps-value").textContent = $("steps").value;
  update();
}
for (const id of ["strategy", "steps", "shift"]) $(id).oninput = explain;
$("apply").onclick = async () => {
  problem("");
  await state.stream?.stop();
  $("apply").disabled = true;
  const words = $("apply").textContent;
  $("apply").textContent = "Loading …";
  $("engine").dataset.state = "loading";
  $("engine-words").textContent = "loading the model …";
  const choice = { strategy: $("strategy").value, steps: Number($("steps").value), shift: Number($("shift").value) };
  try {
    const answer = await fetch("/engine", { method: "POST", body: JSON.stringify(choice) });
    const told = await answer.json();
    if (answer.ok) problem("Loaded. Say something.", true);
    else problem(told.message);
  } catch {
    problem("The server does not answer. Is it still running?");
  }
  $("apply").textContent = words;
  await refresh(true);
};

// ---- beginning -------------------------------------------------------------------------------------------------
async function refresh(settings = false) {
  try {
    const answer = await fetch("/state");
    if (answer.status === 401) return location.replace("/login");
    state.house = await answer.json();
  } catch {
    $("engine").dataset.state = "failed";
    $("engine-words").textContent = "no server";
    state.house = null;
    update();
    return;
  }
  const house = state.house;
  if (house.about && !house.about.trained && house.about.weights.includes("random")) $("noise").hidden = false;
  $("drawn").hidden = house.about?.weights !== "tiny"; // what ships with the package
  $("engine").dataset.state = house.state;
  $("engine-words").textContent = house.state === "ready" ? house.about.model : house.reason || "loading the model …";
  if (house.state === "ready") engineBusy(house.busy);
  if (settings) fill(house);
  explain();
}
function fill(house) {
  if (house.choice) {
    $("strategy").replaceChildren(...house.strategies.map(({ name, title }) => new Option(`${title} (${name})`, name)));
    $("strategy").value = house.choice.strategy;
    $("steps").value = house.choice.steps;
    $("shift").value = house.choice.shift;
    $("reloading").hidden = !house.may_change;
  }
  const { upload_bytes, pixels, voice_s, characters } = house.limits;
  $("limits").textContent = `Taken: pictures of up to ${Math.round(pixels / 1e6)} megapixels and voices of up to ${voice_s} s, ${bytes(upload_bytes)} each; sentences of up to ${characters} characters.`;
  $("sentence").maxLength = $("prompt").maxLength = characters;
}
function remembered(key, value) {
  try {
    if (value) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch { // a browser that keeps nothing
    return null;
  }
}
async function begin() {
  const theme = remembered("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").onclick = () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    remembered("theme", document.documentElement.dataset.theme);
  };
  await refresh(true);
  const house = state.house;
  for (const { name, title, prompt } of house?.examples ?? []) {
    const radio = portrait(`example:${name}`, title, `/examples/${name}.jpg`, prompt);
    if (`example:${name}` === state.portrait) { radio.checked = true; radio.onchange(); }
    $("recording").append(new Option(title, `example:${name}`));
  }
  for (const [name, title] of Object.entries(house?.voices ?? {})) $("voice").append(new Option(title, name));
  if (house?.state !== "ready") setTimeout(function again() { refresh(true).then(() => { if (state.house?.state !== "ready") setTimeout(again, 2000); }); }, 2000);
}
begin();
