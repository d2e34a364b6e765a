-- Start a session and end the user's oldest ones beyond a limit. KEYS: the session, the user's index.
-- ARGV: user, digest, lifetime (ms), now (ms), key prefix of sessions, sessions per user.
local expires = ARGV[4] + ARGV[3]
redis.call('HSET', KEYS[1], 'user', ARGV[1], 'expires', expires)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[4])
redis.call('ZADD', KEYS[2], expires, ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
for number, digest in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1 - ARGV[6])) do
    redis.call('DEL', ARGV[5] .. digest)
    redis.call('ZREM', KEYS[2], digest)
    if number >= 500 then
        break
    end
end
return 1
