-- Run every command of the other scripts on a key that is deleted afterwards. KEYS: the key. ARGV: an expiry (ms).
-- Returns 1, or the first error followed by the name of the command in brackets.
local key = KEYS[1]
local commands = {
    {'TIME'},
    {'SET', key, '1', 'PX', 60000}, {'GET', key}, {'PTTL', key}, {'DEL', key},
    {'HSET', key, 'field', 1}, {'PEXPIRE', key, 60000}, {'PEXPIREAT', key, ARGV[1]}, {'HINCRBY', key, 'field', 1},
    {'HGET', key, 'field'}, {'HMGET', key, 'field'}, {'HKEYS', key}, {'HDEL', key, 'field'},
    {'ZADD', key, 1, 'member'}, {'PEXPIRE', key, 60000}, {'ZRANGE', key, 0, -1},
    {'ZREMRANGEBYSCORE', key, 0, 0}, {'ZREM', key, 'member'},
}
for _, command in ipairs(commands) do
    local reply = redis.pcall(unpack(command))
    if type(reply) == 'table' and reply.err then
        redis.pcall('DEL', key)
        return redis.error_reply(reply.err .. ' (' .. command[1] .. ')')
    end
end
return 1
