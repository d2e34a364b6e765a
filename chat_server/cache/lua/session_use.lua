-- Return the user of a session, false if there is none. Renew it if a hundredth of its lifetime has passed.
-- KEYS: the session. ARGV: key prefix of the users' indexes, digest, lifetime (ms), now (ms).
local session = redis.call('HMGET', KEYS[1], 'user', 'expires')
local user, expires = session[1], tonumber(session[2])
if not user or expires <= tonumber(ARGV[4]) then
    return false
end
if expires < ARGV[4] + ARGV[3] * 0.99 then
    local index = ARGV[1] .. user
    redis.call('HSET', KEYS[1], 'expires', ARGV[4] + ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    redis.call('ZADD', index, ARGV[4] + ARGV[3], ARGV[2])
    redis.call('PEXPIRE', index, ARGV[3])
end
return user
