-- Store the state of a pair as it is. KEYS: the state. ARGV: sender, count, started, refused (0 or 1), until, expiry (ms).
redis.call('HSET', KEYS[1], 'sender', ARGV[1], 'count', ARGV[2], 'started', ARGV[3], 'refused', ARGV[4],
    'until', ARGV[5])
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 4) == 'try:' then
        redis.call('HDEL', KEYS[1], field)
    end
end
redis.call('PEXPIREAT', KEYS[1], ARGV[6])
return 1
