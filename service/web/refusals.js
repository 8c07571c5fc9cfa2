// What to do about each refusal of the service and its gateway.

const SEND_ANOTHER = "Choose another clip.";
const ENCODE = "Save it again as MP4 (H.264), which every phone and editor can do, and choose that.";
const LATER = "Try again; your clip is still here.";

const ADVICE = {
  empty_body: "The file is empty. Choose another one.",
  unauthorized: "Enter a key of this service. Whoever runs it has them.",
  upload_timeout: "The connection is slow or was interrupted. Try again, or choose a smaller clip.",
  body_too_large: "Cut the clip, or save it at a lower resolution, and choose that.",
  unsupported_media: "Choose a video, such as MP4, WebM, MOV, MKV or AVI. If it is one, save it again as MP4 (H.264).",
  corrupt_clip: `Check whether it plays from start to end. ${ENCODE}`,
  no_frames: SEND_ANOTHER,
  clip_too_long: "Cut out the part that shows the action, some seconds are enough, and choose that.",
  resolution_too_large: "Save the clip at a lower resolution; 1080p is plenty, as the network sees 224 × 224 pixels.",
  decode_timeout: "Cut the clip, or save it at a lower resolution, and choose that.",
  decoder_crashed: ENCODE,
  overloaded: "Others are being answered. Wait a moment, then try again; your clip is still here.",
  rate_limited: "Wait a moment, then try again; your clip is still here.",
  not_ready: "It needs a moment to start. Try again then; your clip is still here.",
  draining: "It is being restarted. Try again in a moment; your clip is still here.",
  bad_gateway: LATER,
  gateway_timeout: LATER,
  deadline_exceeded: "The service has too much to do, or the clip is too long. Try again later, or cut the clip.",
  internal_error: "Try again. If it happens again, tell whoever runs the service, with the request's id.",
};

/** Codes where the same clip may be answered another time. */
const PASSING = new Set([
  "unauthorized", "upload_timeout", "overloaded", "rate_limited", "not_ready", "draining", "bad_gateway",
  "gateway_timeout", "deadline_exceeded", "internal_error",
]);

/** What to do, in a sentence or two. */
export function advice(refusal) {
  if (refusal.code === null) {
    return refusal.status ? LATER : "Check your connection, and that the service runs. Then try again.";
  }
  return ADVICE[refusal.code] ?? "Choose another clip, or tell whoever runs the service, with the request's id.";
}

/** Whether asking again with the same clip makes sense. */
export function isPassing(refusal) {
  return refusal.code === null || PASSING.has(refusal.code);
}
