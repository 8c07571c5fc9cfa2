// What to do about each problem that the service or its gateway answers with.

const SAVE_AS_MP4 = "Save it again as MP4 (H.264), which every phone and editor can do, and choose that file.";
const TRY_AGAIN = "Try again; your clip is still here.";

/** Advice by the problem's code. */
const ADVICE = {
  unreadable_file: "Choose the video again.", // the page's own
  empty_body: "The file is empty, or it is a folder. Choose another one.",
  unauthorized: "Enter an API key of this service. Its operator can give you one.",
  upload_timeout: "The connection is slow or was interrupted. Try again, or choose a smaller clip.",
  body_too_large: "Cut the clip, or save it at a lower resolution, and choose that file.",
  unsupported_media: "Choose a video, such as MP4, WebM, MOV, MKV or AVI. If it is one, save it again as MP4 (H.264).",
  corrupt_clip: `Check whether it plays from start to end. ${SAVE_AS_MP4}`,
  no_frames: "Choose another clip.",
  clip_too_long: "Cut out the few seconds that show the action, and choose that file.",
  resolution_too_large: "Save the clip at a lower resolution, such as 1080p, and choose that file.",
  decode_timeout: "Cut the clip, or save it at a lower resolution, and choose that file.",
  decoder_crashed: SAVE_AS_MP4,
  decoder_fault: SAVE_AS_MP4,
  overloaded: "Other clips are being processed. Wait a moment, then try again; your clip is still here.",
  rate_limited: "Wait a moment, then try again; your clip is still here.",
  head_too_large: "Delete the cookies of this site, then try again; your clip is still here.",
  too_many_connections: "Wait a moment, then try again; your clip is still here.",
  not_ready: "The service is starting. Try again in a moment; your clip is still here.",
  decoders_unavailable: "Wait a moment, then try again; your clip is still here.",
  draining: "The service is restarting. Try again in a moment; your clip is still here.",
  bad_gateway: TRY_AGAIN,
  gateway_timeout: TRY_AGAIN,
  deadline_exceeded: "The service is too busy, or the clip is too long. Try again later, or cut the clip.",
  internal_error: "Try again. If it happens again, send the request's id to the service's operator.",
};

/** Codes of problems that may be over when the same clip is sent again. */
const TEMPORARY = new Set([
  "unauthorized", "upload_timeout", "head_too_large", "overloaded", "rate_limited", "not_ready", "decoders_unavailable",
  "too_many_connections", "draining", "bad_gateway", "gateway_timeout", "deadline_exceeded", "internal_error",
]);

/** What to do about a problem, in a sentence or two. */
export function advice(problem) {
  if (problem.code === null) {
    return problem.status ? TRY_AGAIN : "Check your connection and whether the service is running, then try again.";
  }
  return ADVICE[problem.code] ?? "Choose another clip, or send the request's id to the service's operator.";
}

/** Whether it makes sense to send the same clip again. */
export function isTemporary(problem) {
  return problem.code === null || TEMPORARY.has(problem.code);
}
