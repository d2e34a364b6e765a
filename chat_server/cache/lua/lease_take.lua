-- Take or renew the lease. KEYS: the lease. ARGV: holder, lifetime (ms), a holder to replace. Returns the holder.
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] or holder == ARGV[3] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]
end
return holder
