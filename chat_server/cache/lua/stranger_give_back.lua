-- Take back what was counted: the message was not stored, and not tried again. KEYS: the pair's state. ARGV: sender,
-- id, now.
local try = 'try:' .. ARGV[2]
local state = redis.call('HMGET', KEYS[1], 'sender', try)
if state[1] == ARGV[1] and state[2] == ARGV[3] then
    redis.call('HDEL', KEYS[1], try)
    if redis.call('HINCRBY', KEYS[1], 'count', -1) < 1 then
        redis.call('DEL', KEYS[1])
    end
end
return 1
