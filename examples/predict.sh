#!/bin/sh
# Classify a clip and print the answer as JSON:  examples/predict.sh clip.mp4 | jq .predictions
# Set LIMELIGHT_URL to the service's address (default: http://127.0.0.1:8000) and LIMELIGHT_API_KEY to its API key, if
# it requires one. If the clip is refused, the script prints the problem and exits with 22.
set -eu

curl --silent --show-error --fail-with-body \
  --header 'Content-Type: application/octet-stream' ${LIMELIGHT_API_KEY:+--header "X-API-Key: $LIMELIGHT_API_KEY"} \
  --data-binary "@${1:?usage: predict.sh CLIP}" \
  "${LIMELIGHT_URL:-http://127.0.0.1:8000}/predict?top_k=5&attention=false"
