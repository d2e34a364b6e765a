#!/bin/sh
# Start Redis with a single account, `chat`, which can use only the server's keys and channels. The password is in
# /run/secrets/redis. Only Processes = many needs the channels.
# Redis syncs every write before it answers, so a crash does not restore ended sessions. It evicts nothing: without
# enough memory, Redis refuses writes, and the server reports the store as unavailable.
set -eu

password=$(cat /run/secrets/redis)
[ -n "$password" ] || { echo "the secret redis is empty: write a password into secrets/redis" >&2; exit 1; }

exec docker-entrypoint.sh redis-server \
    --user default off \
    --user chat on "#$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)" '~chat_server:*' \
    resetchannels '&chat_server:*' \
    -@all +@read +@write +@connection -@admin -@dangerous +eval +evalsha '+script|load' +time \
    +publish +subscribe +unsubscribe '+pubsub|numsub' \
    --appendonly yes --appendfsync always --maxmemory-policy noeviction "$@"
