-- Decrement rates that were taken earlier. KEYS: the rates. ARGV: for each, the latest end of that window (ms).
for i, key in ipairs(KEYS) do
    local rate = redis.call('HMGET', key, 'count', 'expires')
    if tonumber(rate[1] or '0') > 0 and tonumber(rate[2]) <= tonumber(ARGV[i]) then
        redis.call('HINCRBY', key, 'count', -1)
    end
end
return 1
