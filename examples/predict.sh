#!/bin/sh
# Classify a clip and print the answer as JSON:  examples/predict.sh clip.mp4 | jq .predictions
# Set LIMELIGHT_URL to the service's address (default: http://127.0.0.1:8000) and LIMELIGHT_API_KEY to its API key, if
# it requires one. If the clip is refused, the script prints the problem and exits with 22. If another server answers,
# such as a proxy, it prints the status and the beginning of the text on standard error, and exits with 22.
set -eu

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
: > "$folder/body" # curl writes no file if the answer is empty
type=$(curl --silent --show-error --write-out '%{content_type}' --dump-header "$folder/head" --output "$folder/body" \
  --header 'Content-Type: application/octet-stream' ${LIMELIGHT_API_KEY:+--header "X-API-Key: $LIMELIGHT_API_KEY"} \
  --data-binary "@${1:?usage: predict.sh CLIP}" \
  "${LIMELIGHT_URL:-http://127.0.0.1:8000}/predict?top_k=5&attention=false")
status=$(sed -n 's|^HTTP/[0-9.]* ||p' "$folder/head" | tail -n 1 | tr -d '\r')
case "$status $type" in
  2*' application/json'*)
    cat "$folder/body"
    ;;
  *' application/problem+json'*)
    cat "$folder/body"
    exit 22
    ;;
  *)
    printf '%s: %s\n' "$status" "$(head -c 200 "$folder/body" | tr -s '[:cntrl:]' ' ')" >&2
    exit 22
    ;;
esac
