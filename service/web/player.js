// Two players with the same interface: one plays the clip, the other its sampled frames if the browser cannot play it.
// Both call onTime(seconds after the first frame) for each frame that they show, and onState() when they start or stop.

/** Time after which a clip whose first frame has not been shown is taken as it is then. */
const PATIENCE_MS = 8000;

export class VideoPlayer {
  onTime = () => {};
  onState = () => {};
  #video;
  #origin = 0; // media time of the first frame; it may differ from 0 and from the first currentTime
  #open = new AbortController(); // removes the listeners on close: the next player reuses the video element

  /** Open the clip at `url` in a video element. Resolves to null if the browser cannot play it. */
  static async open(video, url) {
    const player = new VideoPlayer(video);
    const origin = await player.#load(url);
    if (origin === null) {
      player.close();
      return null;
    }
    player.#origin = origin;
    player.#watch();
    return player;
  }

  constructor(video) {
    this.#video = video;
    this.#on("play", () => this.onState());
    this.#on("pause", () => {
      this.onTime(this.time); // it may be past the last frame's time by a sampled frame or more
      this.onState();
    });
    this.#on("seeked", () => this.onTime(this.time));
  }

  get aspect() {
    return this.#video.videoWidth / this.#video.videoHeight; // upright: browsers rotate clips as their metadata says
  }

  get time() {
    return this.#video.currentTime - this.#origin;
  }

  get paused() {
    return this.#video.paused;
  }

  play() {
    this.#video.play().catch(() => {}); // blocked or interrupted: the video stays paused
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

  /** Resolves to the media time of the first frame once it is shown, or to null if there is none. */
  #load(url) {
    const video = this.#video;
    return new Promise((resolve) => {
      // In a background tab a clip can be loaded without its first frame being shown.
      const settle = () => resolve(video.readyState >= video.HAVE_CURRENT_DATA ? video.currentTime : null);
      setTimeout(settle, PATIENCE_MS);
      this.#on("error", () => resolve(null));
      this.#on("loadeddata", () => {
        if (video.videoWidth === 0) {
          resolve(null);
        } else if (!video.requestVideoFrameCallback) {
          resolve(video.currentTime);
        }
      });
      video.src = url;
      video.requestVideoFrameCallback?.((_, { mediaTime }) => resolve(mediaTime));
    });
  }

  #watch() {
    const next = (time) => {
      if (!this.#open.signal.aborted) {
        this.onTime(time);
        this.#watch();
      }
    };
    if (this.#video.requestVideoFrameCallback) {
      // A frame's media time is before the instant that was sought. While paused, that instant counts.
      this.#video.requestVideoFrameCallback((_, { mediaTime }) =>
        next(this.paused ? this.time : mediaTime - this.#origin),
      );
    } else {
      requestAnimationFrame(() => next(this.time));
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
