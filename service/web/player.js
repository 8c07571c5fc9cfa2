// Two players of one kind: the clip itself, or its sampled frames where the browser cannot play the clip.
// Both call onTime(seconds after the first frame) whenever another picture is shown, and onState() when they start or stop.

/** How long a browser may take to find out whether it can play a clip. */
const PATIENCE_MS = 8000;

export class VideoPlayer {
  onTime = () => {};
  onState = () => {};
  #video;
  #origin = 0; // the media time of the first frame, which need not be 0, nor what currentTime begins with
  #open = new AbortController(); // until it is closed: the video element is there for the next player, too

  /** A player of the clip at `url` in a video element; resolves to null where the browser cannot show it. */
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
      this.onTime(this.time); // which may have passed the last picture's by a sampled frame or more
      this.onState();
    });
    this.#on("seeked", () => this.onTime(this.time));
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

  /** Resolves to the media time of the first frame once that is there, or to null. */
  #load(url) {
    const video = this.#video;
    return new Promise((resolve) => {
      // Behind another tab a clip may be there, and its first frame not yet be shown.
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
      // A picture begins before the instant that was sought: while paused that instant counts.
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
