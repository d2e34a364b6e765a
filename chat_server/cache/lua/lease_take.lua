-- Take or renew the lease; returns who holds it. KEYS: the lease. ARGV: holder, lifetime (ms), another to replace.
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] or holder == ARGV[3] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]
end
return holder
