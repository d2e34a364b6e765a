-- Renew the lease of a node. KEYS: the lease, the nodes, the name of the cluster, the directory of the node. ARGV: node,
-- holder of the lease, lifetime (ms), name, lifetime of the directory (ms). Returns the holder, the time, and all live nodes; without this node if its lease had ended.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local microseconds = time[1] .. string.format('%06d', time[2])
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[2] then
    return {holder, microseconds, {}}
end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '0') > now then
    redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    redis.call('SET', KEYS[3], ARGV[4]) -- Redis may have been flushed
    redis.call('PEXPIRE', KEYS[4], ARGV[5])
end
return {ARGV[2], microseconds, redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf')}
