-- Decide whether one message may be sent, by the rule of chat_server.cache.contacts.decide. Times in microseconds.
-- KEYS: the state of the pair. ARGV: sender, id, now, limit, window, lifetime of messages, and optionally a rebuilt
-- state: sender, count, started, refused (0 or 1), until. Returns the permission and whether the receiver is unblocked
-- (0 or 1).
local sender, try, now = ARGV[1], 'try:' .. ARGV[2], tonumber(ARGV[3])
local limit, window, kept = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local state = redis.call('HMGET', KEYS[1], 'sender', 'count', 'started', 'refused', 'until', try)
if not state[1] then
    if not ARGV[7] then
        return {'UNKNOWN', 0}
    end
    state = {ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]}
end
local counted, count, started = state[1], tonumber(state[2]), tonumber(state[3])
local refused, free_until, tried = tonumber(state[4]), tonumber(state[5]), state[6] and tonumber(state[6])

-- Lua numbers are doubles: exact up to 2^53, but tostring() would write 1.7e15.
local function put(counted, count, started, refused, free_until, ends)
    redis.call('HSET', KEYS[1], 'sender', counted, 'count', count, 'started', string.format('%.0f', started),
        'refused', refused, 'until', string.format('%.0f', free_until))
    -- The state stays stored for one more window after its end, to distinguish an ended state from a lost one.
    redis.call('PEXPIRE', KEYS[1], math.max(1000, math.ceil((ends + window - now) / 1000)))
end

if counted == '' then
    if now < free_until then
        put('', 0, 0, 0, now + window, now + window)
        return {'FREE', 0}
    end
elseif now < started + window then
    if counted ~= sender then
        put('', 0, 0, 0, now + window, now + window)
        return {'FREE', refused}
    end
    if tried and now < tried + kept then
        return {'COUNTED', 0}
    end
    if count >= limit then
        put(counted, count, started, 1, 0, started + window)
        return {'REFUSED', 0}
    end
    started = math.min(started, now) -- two messages that arrive together may be counted in reverse order
    put(counted, count + 1, started, refused, 0, started + window)
    redis.call('HSET', KEYS[1], try, ARGV[3])
    return {'COUNTED', 0}
end
put(sender, 1, now, 0, 0, now + window)
-- After the first write, because Redis does not stop a script for lack of memory once it has written.
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 4) == 'try:' then
        redis.call('HDEL', KEYS[1], field)
    end
end
redis.call('HSET', KEYS[1], try, ARGV[3])
return {'COUNTED', 0}
