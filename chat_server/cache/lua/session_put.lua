-- Store a session as it is. KEYS: the session, the user's index. ARGV: user, digest, expiry (ms), now (ms).
local lifetime = ARGV[3] - ARGV[4]
if lifetime <= 0 then
    return 0
end
redis.call('HSET', KEYS[1], 'user', ARGV[1], 'expires', ARGV[3])
redis.call('PEXPIRE', KEYS[1], lifetime)
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
if redis.call('PTTL', KEYS[2]) < lifetime then
    redis.call('PEXPIRE', KEYS[2], lifetime)
end
return 1
