-- Begin a session. KEYS: the session, its user's index. ARGV: user, digest, lifetime (ms), now (ms).
local expires = ARGV[4] + ARGV[3]
redis.call('HSET', KEYS[1], 'user', ARGV[1], 'expires', expires)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[4])
redis.call('ZADD', KEYS[2], expires, ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
