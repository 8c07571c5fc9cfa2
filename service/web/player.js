// Two players with the same interface: one plays the clip, the other its sampled frames if the browser cannot play it.
// Both call onTime(seconds after the first frame) for each frame that they show, and onState() when they start or stop.

/** Time after which a clip whose first frame has not been shown is taken as it is then. */
const PATIENCE_MS = 8000;

/** Seconds between the two frames whose times are compared when a clip is opened, and how long the second may take. */
const STEP_S = 0.1;
const SECOND_FRAME_MS = 1000;

/** Clocks that differ by less, in seconds, are the same: times are rounded. */
const SAME_S = 0.001;

export class VideoPlayer {
  onTime = () => {};
  onState = () => {};
  #video;
  #origin = 0; // currentTime from which on the first frame is due; it may differ from 0 and from the first currentTime
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
    // Just before the end: a clip that loops and is sought to its very end stays `seeking` for ever in WebKit.
    this.#video.currentTime = Math.min(time + this.#origin, this.#video.duration - SAME_S);
  }

  close() {
    this.#open.abort();
  }

  #on(event, listener) {
    this.#video.addEventListener(event, listener, { signal: this.#open.signal });
  }

  /** Resolves to the currentTime from which on the first frame is due, or to null if there is no frame. */
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
      video.requestVideoFrameCallback?.((_, { mediaTime }) => {
        const replaced = video.src !== url; // the frame is another clip's, which was chosen before this one was shown
        resolve(replaced ? null : this.#originOf(mediaTime));
      });
    });
  }

  /**
   * The currentTime from which on the first frame, which has this media time and is being shown, is due; null if the
   * clip is replaced meanwhile.
   *
   * It is the media time where both clocks agree; then a first frame that is due later, because the sound begins before
   * it, is shown at once. But WebKit's media times start elsewhere if an edit list moves the frames, as in most MP4
   * files with B-frames; there it is the currentTime. A second frame tells which.
   */
  async #originOf(mediaTime) {
    const video = this.#video;
    const { currentTime, src } = video;
    const apart = mediaTime - currentTime;
    if (Math.abs(apart) < SAME_S) {
      return currentTime;
    }
    video.currentTime = Math.max(mediaTime, currentTime) + STEP_S;
    const second = await new Promise((resolve) => {
      video.requestVideoFrameCallback((_, later) => resolve(later.mediaTime - video.currentTime));
      setTimeout(() => resolve(0), SECOND_FRAME_MS);
    });
    if (video.src !== src) {
      return null; // another clip was chosen
    }
    video.currentTime = 0;
    return Math.abs(second) < Math.abs(second - apart) ? mediaTime : currentTime;
  }

  /**
   * Call onTime for each frame of the screen while the video plays. currentTime is the one clock that all browsers keep
   * alike: the media times of video frames go on where a loop begins again in Firefox.
   */
  #watch() {
    requestAnimationFrame(() => {
      if (this.#open.signal.aborted) {
        return;
      }
      if (!this.paused) {
        this.onTime(this.time);
      }
      this.#watch();
    });
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
