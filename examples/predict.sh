#!/bin/sh
# What is done in a clip, as JSON:  examples/predict.sh clip.mp4 | jq .predictions
# LIMELIGHT_URL says where the service is, LIMELIGHT_API_KEY is sent if it is set. Exit status 22 where the clip is
# refused; the problem is printed then.
set -eu

curl --silent --show-error --fail-with-body \
  --header 'Content-Type: application/octet-stream' ${LIMELIGHT_API_KEY:+--header "X-API-Key: $LIMELIGHT_API_KEY"} \
  --data-binary "@${1:?name a clip}" "${LIMELIGHT_URL:-http://127.0.0.1:8000}/predict?top_k=5&attention=false"
