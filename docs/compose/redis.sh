#!/bin/sh
# Starts Redis with a single account, `chat`, for the server's keys alone. Its password is in /run/secrets/redis.
# Every write is synced before Redis answers, so a crash brings no ended session back, and nothing is evicted: with
# less memory than it needs, Redis refuses writes and the server says so.
set -eu

password=$(cat /run/secrets/redis)
[ -n "$password" ] || { echo "the secret redis is empty: write a password into secrets/redis" >&2; exit 1; }

exec docker-entrypoint.sh redis-server \
    --user default off \
    --user chat on "#$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)" '~chat_server:*' resetchannels \
    -@all +@read +@write +@connection -@admin -@dangerous +eval +evalsha '+script|load' +time \
    --appendonly yes --appendfsync always --maxmemory-policy noeviction "$@"
