-- Give a node a place in the cluster. KEYS: the lease, the nodes. ARGV: id, holder of the lease, lifetime (ms), slots.
-- Returns the holder, the member of the nodes (empty if there is no free slot, or another holds the lease), and the time.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local microseconds = time[1] .. string.format('%06d', time[2])
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[2] then
    return {holder, '', microseconds}
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local used = {}
for _, node in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    used[string.match(node, '^%d+')] = true
end
for slot = 0, ARGV[4] - 1 do
    if not used[tostring(slot)] then
        local node = slot .. ':' .. ARGV[1]
        redis.call('ZADD', KEYS[2], now + ARGV[3], node)
        return {ARGV[2], node, microseconds}
    end
end
return {ARGV[2], '', microseconds}
