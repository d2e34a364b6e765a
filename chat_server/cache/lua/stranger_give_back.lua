-- Take back what was counted: the message was not stored. KEYS: the pair's state. ARGV: sender, now.
local state = redis.call('HMGET', KEYS[1], 'sender', 'count', 'started')
if state[1] == ARGV[1] and tonumber(state[3]) <= tonumber(ARGV[2]) then
    if redis.call('HINCRBY', KEYS[1], 'count', -1) < 1 then
        redis.call('DEL', KEYS[1])
    end
end
return 1
