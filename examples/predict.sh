#!/bin/sh
# Classify a clip and print the answer as JSON: examples/predict.sh clip.mp4 | jq .predictions
# Set LIMELIGHT_URL to the service's address (default: http://127.0.0.1:8000) and LIMELIGHT_API_KEY to its API key, if
# it requires one. A busy service (429 or 503) is asked again when its Retry-After says, for ten minutes at most; curl
# asks again after 408, 500, 502 and 504, too. If the clip is refused, or another server answers, such as a proxy, the
# script prints the answer's status, type and beginning on standard error and exits with 22. If there is no answer, it
# exits with curl's exit code. Needs curl 7.66 or newer.
set -eu

clip=${1:?usage: predict.sh CLIP}
if [ -d "$clip" ] || [ ! -r "$clip" ]; then
  echo "predict.sh: the clip cannot be read" >&2
  exit 2
fi
answer=$(mktemp)
trap 'rm "$answer"' EXIT
# --upload-file streams the clip, unlike --data-binary; --header @- keeps the key out of the list of processes.
told=$(curl --silent --show-error --retry 100 --retry-max-time 600 \
  --output "$answer" --write-out '%{http_code} %{content_type}' \
  --request POST --globoff --upload-file "$clip" --header @- \
  "${LIMELIGHT_URL:-http://127.0.0.1:8000}/predict?top_k=5&attention=false" << HEADERS
Content-Type: application/octet-stream
${LIMELIGHT_API_KEY:+X-API-Key: $LIMELIGHT_API_KEY}
HEADERS
)
case $told in
  200\ application/json*) cat "$answer" ;;
  *)
    printf '%s: %s\n' "$told" "$(head -c 500 "$answer" | tr -s '[:cntrl:]' ' ')" >&2
    exit 22
    ;;
esac
