-- Enter users into the directory of a node. KEYS: the nodes, the directory of this node.
-- ARGV: this node, key prefix of the directory, lifetime (ms), then pairs: user, number of sockets.
-- Returns for each user the number of sockets at other nodes.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
local elsewhere = {}
for place = 4, #ARGV, 2 do
    if ARGV[place + 1] == '0' then
        redis.call('HDEL', KEYS[2], ARGV[place])
    else
        redis.call('HSET', KEYS[2], ARGV[place], ARGV[place + 1])
    end
    local count = 0
    for _, node in ipairs(nodes) do
        local sockets = node ~= ARGV[1] and redis.call('HGET', ARGV[2] .. node, ARGV[place])
        count = count + (sockets and tonumber(sockets) or 0)
    end
    table.insert(elsewhere, count)
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return elsewhere
