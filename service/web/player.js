// Two players of one kind: the clip itself, or its sampled frames where the browser cannot play the clip.
// Both call onTime(seconds after the first frame) whenever another picture is shown, and onState() when they start or stop.

/** How long a browser may take to find out whether it can play a clip. */
const PATIENCE_MS = 8000;

export class VideoPlayer {
  onTime = () => {};
  onState = () => {};
  #video;
  #origin = 0; // the media time of the first frame, which need not be 0
  #open = new AbortController(); // until it is closed: the video element is there for the next player, too

  /** A player of the clip at `url` in a video element; resolves to null where the browser cannot show it. */
  static open(video, url) {
    const player = new VideoPlayer(video);
    return new Promise((resolve) => {
      const found = (playable) => {
        clearTimeout(patience);
        if (!playable) {
          player.close();
        }
        resolve(playable ? player : null);
      };
      const patience = setTimeout(found, PATIENCE_MS, false);
      player.#on("loadeddata", () => found(video.videoWidth > 0));
      player.#on("error", () => found(false));
      video.src = url;
    });
  }

  constructor(video) {
    this.#video = video;
    this.#on("play", () => this.onState());
    this.#on("pause", () => {
      this.onTime(this.time); // which may have passed the last picture's by a sampled frame or more
      this.onState();
    });
    this.#on("seeked", () => this.onTime(this.time));
    if (video.requestVideoFrameCallback) {
      video.requestVideoFrameCallback((_, { mediaTime }) => {
        this.#origin = video.currentTime === 0 ? mediaTime : 0;
        this.#onFrame(mediaTime);
      });
    } else {
      this.#watch();
    }
  }

  get aspect() {
    return this.#video.videoWidth / this.#video.videoHeight; // upright: browsers turn clips as their metadata say
  }

  get time() {
    return this.#video.currentTime - this.#origin;
  }

  get paused() {
    return this.#video.paused;
  }

  play() {
    this.#video.play().catch(() => {}); // forbidden or interrupted: it stays paused, which shows
  }

  pause() {
    this.#video.pause();
  }

  seek(time) {
    this.#video.currentTime = Math.min(time + this.#origin, this.#video.duration);
  }

  close() {
    this.#open.abort();
  }

  #on(event, listener) {
    this.#video.addEventListener(event, listener, { signal: this.#open.signal });
  }

  #onFrame(mediaTime) {
    if (this.#open.signal.aborted) {
      return;
    }
    // A picture begins before the instant that was sought: while paused that instant counts.
    this.onTime(this.paused ? this.time : mediaTime - this.#origin);
    this.#video.requestVideoFrameCallback((_, frame) => this.#onFrame(frame.mediaTime));
  }

  #watch() {
    if (!this.#open.signal.aborted) {
      this.onTime(this.time);
      requestAnimationFrame(() => this.#watch());
    }
  }
}

export class FramesPlayer {
  onTime = () => {};
  onState = () => {};
  paused = true;
  time = 0;
  #duration;
  #last = 0;

  constructor(duration, aspect) {
    this.#duration = duration;
    this.aspect = aspect;
  }

  play() {
    this.paused = false;
    this.#last = performance.now();
    requestAnimationFrame((now) => this.#advance(now));
    this.onState();
  }

  pause() {
    this.paused = true;
    this.onState();
  }

  seek(time) {
    this.time = Math.min(time, this.#duration);
    this.onTime(this.time);
  }

  close() {
    this.paused = true;
  }

  #advance(now) {
    if (this.paused) {
      return;
    }
    this.seek((this.time + (now - this.#last) / 1000) % this.#duration);
    this.#last = now;
    requestAnimationFrame((next) => this.#advance(next));
  }
}
