-- Increment every rate, or none if one of them is at its limit. KEYS: the rates. ARGV: now (ms), the tolerance of clocks
-- (ms), then for each rate its limit and window (ms). Returns 0, or the milliseconds until the last exceeded window ends.
local now, tolerance, wait, counted = tonumber(ARGV[1]), tonumber(ARGV[2]), 0, {}
for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
    local rate = redis.call('HMGET', key, 'count', 'expires')
    local count, expires = tonumber(rate[1] or '0'), tonumber(rate[2] or '0')
    if expires <= now or expires > now + window + tolerance then -- the window is over, or the clock was set back
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
