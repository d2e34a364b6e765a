-- Return the count of the current window. KEYS: the rate. ARGV: now (ms), the longest time to the end of a window (ms).
local now = tonumber(ARGV[1])
local rate = redis.call('HMGET', KEYS[1], 'count', 'expires')
local expires = tonumber(rate[2] or '0')
if expires <= now or expires > now + tonumber(ARGV[2]) then -- the window is over, or the clock was set back
    return 0
end
return tonumber(rate[1] or '0')
