// The microphone as a source of 16-bit sound.
const WHY = {
  NotAllowedError: "The browser may not use the microphone. Allow it beside the address, then try again.",
  NotFoundError: "There is no microphone here. Plug one in, or type a sentence.",
  NotReadableError: "Another program is using the microphone.",
};

export class Microphone {
  constructor(onSound) {
    this.onSound = onSound;
    this.stream = null;
  }
  get on() {
    return this.stream !== null;
  }
  // `audio` is an AudioContext; the sound comes at its rate.
  async start(audio) {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give the microphone to pages from localhost or https only. Open the page at one of them.");
    }
    const wanted = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      throw new Error(WHY[error.name] || `The microphone cannot be used (${error.message}).`);
    }
    await audio.audioWorklet.addModule("/recorder.js");
    if (!this.stream) return; // turned off meanwhile
    this.source = audio.createMediaStreamSource(this.stream);
    this.node = new AudioWorkletNode(audio, "recorder", { numberOfOutputs: 1 });
    this.node.port.onmessage = ({ data }) => this.onSound(data.pcm, data.level);
    // a node that leads nowhere is not run everywhere: its silence goes to the speakers
    this.source.connect(this.node).connect(audio.destination);
  }
  stop() {
    if (!this.stream) return;
    for (const track of this.stream.getTracks()) track.stop();
    this.stream = null;
    this.source?.disconnect();
    this.node?.disconnect();
    if (this.node) this.node.port.onmessage = null;
    this.source = this.node = null;
  }
}
