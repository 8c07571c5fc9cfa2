#!/bin/sh
# Replace the replicas one after another, so that a new setting, key, image or bundle is used and no request is lost.
#
#   deploy/rolling-update.sh [SERVICE]...       default: limelight
#
# A new replica starts beside the old ones. Once it is healthy, an old one is stopped, which finishes its requests, and
# removed. If a new replica ends or is not healthy after PATIENCE_S (900) seconds, it is removed, the old ones that are
# left keep serving, and the exit code is 1. Run it again after a failure or an interruption. It needs memory for one
# more replica. `model` runs first, since a new image may bring a new bundle; other services are left alone.
#
# Run no other command that starts or stops replicas meanwhile. If the script is killed (SIGKILL), one more replica than
# before is left; `docker compose up --detach --no-recreate` removes it.
set -eu
cd "$(dirname "$0")/.."

up() { docker compose --progress quiet up --detach --no-deps --no-build "$@"; }
containers() { docker compose ps --all --quiet "$service"; }

fail() {
  echo "$0: $1" >&2
  exit 1
}

# Ctrl-C does not reach `docker stop`: a second one would end the replica at once, with its requests.
remove() {
  setsid --wait docker stop "$1" >/dev/null # waits as long as its stop_grace_period
  docker rm "$1" >/dev/null
}

# Remove what started but did not become healthy, and what was being stopped when the script was interrupted.
clean_up() {
  for container in $(containers); do
    case $serving in *"$container"*) continue ;; esac
    remove "$container"
  done
}

give_up() {
  echo "$0: the new replica $2; the old ones keep serving. The end of its log:" >&2
  docker logs --tail 20 "$1" >&2
  exit 1
}

wait_until_healthy() {
  deadline=$(($(date +%s) + ${PATIENCE_S:-900}))
  until [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; do
    [ "$(docker inspect --format '{{.State.Status}} {{.RestartCount}}' "$1")" = "running 0" ] || give_up "$1" ended
    [ "$(date +%s)" -lt "$deadline" ] || give_up "$1" "is not healthy after ${PATIENCE_S:-900} s"
    sleep 1
  done
}

replace_all() {
  docker compose rm --force "$service" >/dev/null 2>&1 # those that an interrupted run had stopped already
  old=$(containers)
  [ -n "$old" ] || fail "no replica of $service runs; start one with \`docker compose up --detach --no-recreate\`"
  serving=$old
  trap clean_up EXIT
  for leaver in $old; do
    count=$(echo "$serving" | wc -w)
    up --no-recreate --scale "$service=$((count + 1))" "$service"
    newcomers=$(containers | grep -vF "$serving") || fail "no new replica started; the old ones keep serving"
    for newcomer in $newcomers; do wait_until_healthy "$newcomer"; done
    serving=$(containers | grep -v "$leaver")
    remove "$leaver"
    echo "$service: replaced a replica; $(echo "$serving" | wc -w) are running"
  done
  trap - EXIT
}

# The lock ends with the script and the commands that it runs, however they end.
exec 9<.
flock --nonblock 9 || fail "a rolling update runs already; wait until it has ended"
trap 'exit 130' INT TERM
echo "model: checks the bundle, and writes it if it is new, which takes minutes"
up model
[ "$(docker wait "$(docker compose ps --all --quiet model)")" = 0 ] ||
  fail "model failed; its log says why: docker compose logs model"
for service in "${@:-limelight}"; do replace_all; done
