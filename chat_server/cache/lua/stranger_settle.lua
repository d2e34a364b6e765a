-- A message is stored. The rule is chat_server.cache.limits.settle; times in microseconds. Returns whether it lifts a
-- refusal (0 or 1). KEYS: the pair's state. ARGV: sender, id, time, window.
local time, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local state = redis.call('HMGET', KEYS[1], 'sender', 'started', 'refused')
local counted, started = state[1], tonumber(state[2])
if counted == ARGV[1] then
    redis.call('HDEL', KEYS[1], 'try:' .. ARGV[2])
elseif counted and counted ~= '' and started <= time and time < started + window then
    redis.call('HSET', KEYS[1], 'sender', '', 'count', 0, 'started', 0, 'refused', 0,
        'until', string.format('%.0f', time + window))
    redis.call('PEXPIRE', KEYS[1], math.max(1000, math.ceil(2 * window / 1000)))
    return tonumber(state[3])
end
return 0
