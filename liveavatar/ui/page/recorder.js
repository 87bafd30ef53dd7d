// Runs in the audio thread: gathers a tenth of a second and hands it over with its loudness.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = new Float32Array(Math.round(sampleRate / 10));
    this.count = 0;
  }
  process(inputs) {
    const heard = inputs[0][0];
    if (!heard) return true;
    for (const sample of heard) {
      this.held[this.count++] = sample;
      if (this.count === this.held.length) {
        const pcm = new Int16Array(this.count);
        let power = 0;
        for (let i = 0; i < this.count; i++) {
          const value = Math.max(-1, Math.min(1, this.held[i]));
          pcm[i] = Math.round(value * 32767);
          power += value * value;
        }
        this.port.postMessage({ pcm, level: Math.sqrt(power / this.count) }, [pcm.buffer]);
        this.count = 0;
      }
    }
    return true;
  }
}
registerProcessor("recorder", Recorder);
