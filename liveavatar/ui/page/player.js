// Two ways to show a stream while it is made: MP4 through MediaSource, or JPEG pictures with sound through a canvas.
const Source = window.MediaSource || window.ManagedMediaSource;
const KEPT_S = 20; // of what was shown, for the video element
const START_S = 0.6; // in hand before it begins, so that it does not stop at once
const BEHIND_S = 3; // further behind than this (a sleeping tab) it catches up
const RECORDED_BYTES = 400e6;

export const format = Source && Source.isTypeSupported('video/mp4; codecs="avc1.64000b,mp4a.40.2"') ? "mp4" : "jpeg";

export function makePlayer(video, canvas, audio) {
  return format === "mp4" ? new Mp4Player(video) : new JpegPlayer(canvas, audio);
}

class Mp4Player {
  constructor(video) {
    this.video = this.element = video;
    this.waiting = []; // chunks, and what else is to be done to the buffer, in order
    this.parts = []; // the recording
    this.recorded = 0;
    this.seconds = 0;
    this.realign = false;
    this.over = false;
    this.source = new Source();
    if (Source !== window.MediaSource) video.disableRemotePlayback = true;
    this.url = URL.createObjectURL(this.source);
    video.src = this.url;
    this.opened = new Promise((open) => this.source.addEventListener("sourceopen", open, { once: true }));
  }
  async begin(told) {
    await this.opened;
    if (this.source.readyState !== "open") return;
    this.buffer = this.source.addSourceBuffer(told.mime);
    this.buffer.addEventListener("updateend", () => {
      this.keepUp();
      this.next();
    });
    this.next();
  }
  add(told, data) {
    if (this.recorded + data.byteLength <= RECORDED_BYTES) {
      this.parts.push(data);
      this.recorded += data.byteLength;
      this.seconds = told.at + told.seconds;
    }
    this.waiting.push({ told, data });
    this.next();
  }
  // What is buffered beyond this moment is not shown any more; what comes next follows right behind it.
  interrupt() {
    this.waiting = this.waiting.filter((item) => item.told && item.told.at === 0);
    this.waiting.push({ cut: true });
    this.realign = true;
    this.next();
  }
  finish() {
    this.waiting.push({ end: true });
    this.next();
  }
  next() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    const { video, buffer } = this;
    const item = this.waiting.shift();
    try {
      if (!item) return this.tidy();
      if (item.end) {
        this.over = true;
        this.source.endOfStream();
        if (this.end > 0) this.play(); // one that was too short to begin
        return;
      }
      if (item.cut) {
        const from = video.currentTime + 0.15;
        if (this.end > from) buffer.remove(from, Infinity);
        else this.next();
        return;
      }
      if (this.realign) {
        buffer.timestampOffset = this.end - item.told.at;
        this.realign = false;
      }
      buffer.appendBuffer(item.data);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.waiting.unshift(item);
      this.tidy(2);
    }
  }
  tidy(kept = KEPT_S) {
    const until = this.video.currentTime - kept;
    if (this.buffer.buffered.length && this.buffer.buffered.start(0) < until - 10) this.buffer.remove(0, until);
  }
  get end() {
    const held = this.buffer?.buffered;
    return held && held.length ? held.end(held.length - 1) : 0;
  }
  get ahead() {
    return Math.max(0, this.end - this.video.currentTime);
  }
  keepUp() {
    if (this.over) return;
    if (this.video.paused && (this.ahead > START_S || this.video.currentTime > 0)) this.play();
    if (this.ahead > BEHIND_S) this.video.currentTime = this.end - 0.5;
  }
  play() {
    this.video.play().catch(() => {});
  }
  get canSave() {
    return this.seconds > 0;
  }
  // The stream as a file: its header is told how long it became.
  save() {
    if (!this.parts.length) return null;
    const header = new Uint8Array(this.parts[0].slice(0));
    for (let i = 0; i + 16 < header.length; i++) {
      if (header[i] === 109 && header[i + 1] === 101 && header[i + 2] === 104 && header[i + 3] === 100) { // "mehd"
        new DataView(header.buffer).setUint32(i + 8, Math.round(this.seconds * 1000));
        break;
      }
    }
    return new Blob([header, ...this.parts.slice(1)], { type: "video/mp4" });
  }
  set muted(value) {
    this.video.muted = value;
  }
  close() {
    this.waiting = [];
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    URL.revokeObjectURL(this.url);
  }
}

class JpegPlayer {
  constructor(canvas, audio) {
    this.element = canvas;
    this.audio = audio;
    this.loud = audio.createGain();
    this.loud.connect(audio.destination);
    this.frames = []; // { at, bitmap }
    this.sounds = [];
    this.due = 0;
    this.over = false;
    this.chain = Promise.resolve();
    this.epoch = 0;
    this.ticking = requestAnimationFrame(() => this.tick());
  }
  async begin(told) {
    this.element.width = told.width;
    this.element.height = told.height;
  }
  add(told, data) {
    const epoch = this.epoch;
    this.chain = this.chain.then(() => this.show(data, epoch)).catch(() => {});
  }
  async show(data, epoch) {
    const view = new DataView(data);
    const count = view.getUint16(4, true), fps = view.getUint16(6, true);
    const rate = view.getUint32(8, true), samples = view.getUint32(12, true);
    const pcm = new Int16Array(data, 16, samples);
    let place = 16 + samples * 2;
    const pictures = [];
    for (let i = 0; i < count; i++) {
      const size = view.getUint32(place, true);
      pictures.push(createImageBitmap(new Blob([new Uint8Array(data, place + 4, size)], { type: "image/jpeg" })));
      place += 4 + size;
    }
    const bitmaps = await Promise.all(pictures);
    if (epoch !== this.epoch) return;
    const now = this.audio.currentTime;
    if (this.due < now || this.due > now + BEHIND_S) this.due = now + 0.1;
    const sound = this.audio.createBuffer(1, Math.max(1, samples), rate);
    const out = sound.getChannelData(0);
    for (let i = 0; i < samples; i++) out[i] = pcm[i] / 32768;
    const node = this.audio.createBufferSource();
    node.buffer = sound;
    node.connect(this.loud);
    node.start(this.due);
    node.onended = () => this.sounds.splice(this.sounds.indexOf(node), 1);
    this.sounds.push(node);
    bitmaps.forEach((bitmap, i) => this.frames.push({ at: this.due + i / fps, bitmap }));
    this.due += count / fps;
  }
  tick() {
    const now = this.audio.currentTime;
    let picture = null;
    while (this.frames.length && this.frames[0].at <= now) {
      picture?.close();
      picture = this.frames.shift().bitmap;
    }
    if (picture) {
      this.element.getContext("2d").drawImage(picture, 0, 0);
      picture.close();
    }
    this.ticking = requestAnimationFrame(() => this.tick());
  }
  interrupt() {
    this.epoch += 1;
    for (const node of [...this.sounds]) node.stop();
    for (const { bitmap } of this.frames) bitmap.close();
    this.frames = [];
    this.due = 0;
  }
  finish() {
    this.over = true;
  }
  get ahead() {
    return Math.max(0, this.due - this.audio.currentTime);
  }
  get canSave() {
    return false;
  }
  save() {
    return null;
  }
  set muted(value) {
    this.loud.gain.value = value ? 0 : 1;
  }
  close() {
    this.interrupt();
    cancelAnimationFrame(this.ticking);
  }
}
