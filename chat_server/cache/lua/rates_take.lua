-- Count one for each rate if all allow it. KEYS: the rates. ARGV: now (ms), then limit and window (ms) of each.
-- Returns 0, or, counting nothing, the milliseconds until the last of those exceeded begins anew.
local now, wait, counted = tonumber(ARGV[1]), 0, {}
for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    local rate = redis.call('HMGET', key, 'count', 'expires')
    local count, expires = tonumber(rate[1] or '0'), tonumber(rate[2] or '0')
    if expires <= now or expires > now + window then -- over, or the clock was set back
        count, expires = 0, now + window
    end
    if count >= limit then
        wait = math.max(wait, expires - now)
    end
    counted[i] = {count + 1, expires}
end
if wait == 0 then
    for i, key in ipairs(KEYS) do
        redis.call('HSET', key, 'count', counted[i][1], 'expires', counted[i][2])
        redis.call('PEXPIRE', key, counted[i][2] - now)
    end
end
return wait
