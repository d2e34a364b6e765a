-- Run the commands that only nodes of a cluster need, on a key that is deleted afterwards. KEYS: the key.
-- Returns 1, or the first error followed by the name of the command in brackets.
local key = KEYS[1]
for _, command in ipairs({
    {'SET', key, '1', 'NX', 'PX', 60000}, {'DEL', key},
    {'ZADD', key, 1, 'member'}, {'PEXPIRE', key, 60000}, {'ZSCORE', key, 'member'}, {'ZCARD', key},
    {'ZRANGEBYSCORE', key, 0, 1}, {'DEL', key}, {'PUBLISH', key, ''}, {'PUBSUB', 'NUMSUB', key}, {'PING'},
}) do
    local reply = redis.pcall(unpack(command))
    if type(reply) == 'table' and reply.err then
        redis.pcall('DEL', key)
        return redis.error_reply(reply.err .. ' (' .. command[1] .. ')')
    end
end
return 1
