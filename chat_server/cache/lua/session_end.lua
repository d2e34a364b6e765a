-- End a session. KEYS: the session. ARGV: key prefix of the users' indexes, digest.
local user = redis.call('HGET', KEYS[1], 'user')
if user then
    redis.call('DEL', KEYS[1])
    redis.call('ZREM', ARGV[1] .. user, ARGV[2])
end
return 1
