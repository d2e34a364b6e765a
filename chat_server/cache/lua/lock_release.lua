-- Release a lock, unless it has expired. KEYS: the lock. ARGV: the token that took it.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 1
